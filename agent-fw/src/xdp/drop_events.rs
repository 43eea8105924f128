//! Refused packets, as the programs tell of them: at most one in a tenth of a second on each CPU.

use super::error::XdpError;
use super::pin::{MapName, Pin, failed};
use super::state::RefusedPacket;
use crate::system::lock;
use agent_fw_ebpf::{Mac, Sample};
use aya::maps::{Map, MapData, RingBuf};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_indextoname;
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Held by who watches: a sample can be read once.
const LOCK: &str = "/run/agent-fw/watch";

/// The samples from now on.
pub struct Watch {
    samples: RingBuf<MapData>,
    /// When this host was started, by its clock of now.
    start: SystemTime,
    /// What is older was taken before anybody watched.
    since: Duration,
    _only: Flock<File>,
}

impl Watch {
    /// Begins to watch; `None` where no program is there. Goes on through updates.
    pub fn open() -> Result<Option<Self>, XdpError> {
        let pin = Pin::Map(MapName::Samples);
        if !pin.is_there() {
            return Ok(None);
        }
        let only = lock()?;
        let samples = MapData::from_pin(pin.path())
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(failed(&pin.path(), "cannot be read"))?;
        let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(anyhow::Error::from)?;
        let since = Duration::from(since);
        let start = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Some(Self { samples, start, since, _only: only }))
    }

    /// The next refusal, if there has been one. Until then, the descriptor is not readable.
    pub fn take(&mut self) -> Option<RefusedPacket> {
        while let Some(bytes) = self.samples.next() {
            let Some(sample) = Sample::from_bytes(&bytes) else { continue };
            // The programs' clock stands still between two ticks, of at most 10 ms.
            if Duration::from_nanos(sample.time_ns) + Duration::from_millis(10) >= self.since {
                return Some(refusal(&sample, self.start));
            }
        }
        None
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.samples.as_fd()
    }
}

fn lock() -> Result<Flock<File>, XdpError> {
    let failed =
        |error: anyhow::Error| XdpError::Host(error.context(format!("cannot lock {LOCK}")));
    let file = lock::open_private(Path::new(LOCK)).map_err(|error| failed(error.into()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => XdpError::Watched,
        errno => failed(errno.into()),
    })
}

fn refusal(sample: &Sample, start: SystemTime) -> RefusedPacket {
    let name = if_indextoname(sample.ifindex).ok().and_then(|name| name.into_string().ok());
    RefusedPacket {
        time: start + Duration::from_nanos(sample.time_ns),
        source: address(sample.source),
        destination: address(sample.destination),
        source_mac: Mac::from_bits(sample.source_mac).to_string(),
        interface: name.unwrap_or_else(|| format!("interface {}", sample.ifindex)),
        hidden_port: sample.hidden_port != 0,
    }
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_told_in_the_words_of_the_field() {
        let sample = Sample {
            time_ns: 1_500_000_000,
            source: [0, 0xffff_cb00_7109],
            destination: [0x2001_0db8 << 32, 1],
            source_mac: 0x0200_5e10_00ff,
            ifindex: 1,
            hidden_port: 0,
        };
        let told = refusal(&sample, SystemTime::UNIX_EPOCH);
        assert_eq!(told.source.to_string(), "203.0.113.9");
        assert_eq!(told.destination.to_string(), "2001:db8::1");
        assert_eq!(told.source_mac, "02:00:5e:10:00:ff");
        assert_eq!((told.interface.as_str(), told.hidden_port), ("lo", false));
        assert_eq!(told.time, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    }
}
