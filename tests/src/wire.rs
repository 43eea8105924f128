//! Raw Ethernet frames, out of an interface and into it.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

use crate::packet::Segment;
use crate::wait::ready;

/// The largest frame that an interface with segmentation offload can hand up.
const LARGEST_FRAME: usize = 65_536 + 64;

/// Thousands of frames that wait to be asked for.
const BUFFER: usize = 16 << 20;

/// One interface, at the level of Ethernet. From its opening on it keeps the frames that
/// pass, in both directions, until they are asked for.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
}

/// How long a queue that is full is given to empty, and how often.
const FULL_QUEUE: Duration = Duration::from_millis(2);
const FULL_QUEUE_TRIES: u32 = 5000;

impl Wire {
    /// Opens an interface of this namespace, which must be up.
    pub fn open(interface: &str) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .context("cannot make a packet socket")?;
        // A reader on a busy machine comes late: nothing is to be lost meanwhile.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("cannot enlarge a buffer")?;
        bind(socket.as_raw_fd(), &link_address(interface)?)
            .with_context(|| format!("cannot open interface {interface}"))?;
        // Between these two steps the socket heard every interface.
        let wire = Self { socket };
        while wire.receive()?.is_some() {}
        Ok(wire)
    }

    /// Sends a whole Ethernet frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let attempt = || send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        let mut sent = attempt();
        // The other side is slower than we are: what is on its way is delivered first.
        for _ in 0..FULL_QUEUE_TRIES {
            if !matches!(sent, Err(Errno::ENOBUFS | Errno::EAGAIN)) {
                break;
            }
            std::thread::sleep(FULL_QUEUE);
            sent = attempt();
        }
        let length =
            sent.with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(
            length == frame.len(),
            "only {length} of {} bytes of a frame were sent",
            frame.len()
        );
        Ok(())
    }

    /// The first frame in which `wanted` finds something, or `None` after `timeout`. Frames
    /// before it are gone. Checksums in captured frames may be unfinished: the kernel leaves
    /// them to the hardware, which a veth pair does not have.
    pub fn find<T>(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        while ready(&self.socket, PollFlags::POLLIN, deadline).context("cannot wait")? {
            let Some(frame) = self.receive()? else { continue };
            if let Some(found) = wanted(&frame) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The SYN-ACK that answers a SYN sent from `source` to `destination`, or `None` if none
    /// comes in time.
    pub fn find_syn_ack(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        timeout: Duration,
    ) -> Result<Option<Segment>> {
        self.find(timeout, |frame| {
            Segment::parse(frame).filter(|segment| {
                segment.is_syn_ack()
                    && segment.source == destination
                    && segment.destination == source
            })
        })
    }

    /// The next frame that is already here.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; LARGEST_FRAME];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno).context("cannot receive a frame"),
        }
    }
}

/// The interface as an address of the packet family. Its protocol is 0, for which binding
/// keeps the socket's own.
fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()
        .context("cannot list the interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("there is no interface {interface} in this namespace"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use anyhow::Result;

    use super::Wire;
    use crate::filter::filter_input;
    use crate::lab::Lab;
    use crate::packet::{Ethernet, Extension, Ipv4, Ipv6, Packet, Raw, Tcp, Vlan};
    use crate::peer::Peer;
    use crate::tcp::Listener;

    const TIMEOUT: Duration = Duration::from_millis(700);

    fn ethernet(peer: &Peer) -> Result<Ethernet> {
        Ok(Ethernet::new(peer.mac()?, peer.host_mac()))
    }

    /// Whether the host answers this SYN, sent in the given frames, with a SYN-ACK.
    fn answered(peer: &Peer, source: IpAddr, port: u16, frames: &[Packet]) -> Result<bool> {
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        for frame in frames {
            wire.send(&frame.bytes())?;
        }
        let agent = peer.host_address(source, 4118);
        Ok(wire.find_syn_ack(SocketAddr::new(source, port), agent, TIMEOUT)?.is_some())
    }

    /// A name, the source address and port, and the frames.
    type Disguise = (&'static str, IpAddr, u16, Vec<Packet>);

    /// The forms in which a SYN reaches a Linux host that has no VLAN devices.
    fn disguises(peer: &Peer) -> Result<Vec<Disguise>> {
        let ethernet = ethernet(peer)?;
        let v4 = Ipv4::new(peer.v4(), peer.host_v4());
        let v6 = Ipv6::new(peer.v6(), peer.host_v6());
        let nops = Ipv4 { options: vec![1; 8], ..v4.clone() };
        let padding = Raw::data(&[0; 40]);
        let syn = |port| Tcp::syn(port, 4118);
        let (from4, from6) = (IpAddr::from(peer.v4()), IpAddr::from(peer.v6()));
        Ok(vec![
            ("IPv4", from4, 40_001, vec![ethernet / v4.clone() / syn(40_001)]),
            ("IPv6", from6, 40_002, vec![ethernet / v6 / syn(40_002)]),
            (
                "priority tag",
                from4,
                40_003,
                vec![ethernet / Vlan::priority() / v4.clone() / syn(40_003)],
            ),
            ("IPv4 options", from4, 40_004, vec![ethernet / nops / syn(40_004)]),
            (
                "IPv6 destination options",
                from6,
                40_005,
                vec![ethernet / v6 / Extension::destination_options() / syn(40_005)],
            ),
            (
                "IPv6 hop-by-hop options and destination options",
                from6,
                40_006,
                vec![
                    ethernet
                        / v6
                        / Extension::hop_by_hop()
                        / Extension::destination_options()
                        / syn(40_006),
                ],
            ),
            (
                "IPv4 fragments",
                from4,
                40_007,
                (ethernet / v4 / syn(40_007) / padding.clone()).fragments(24),
            ),
            (
                "IPv6 fragments",
                from6,
                40_008,
                (ethernet / v6 / syn(40_008) / padding.clone()).fragments(24),
            ),
            (
                "IPv6 fragments behind hop-by-hop options",
                from6,
                40_009,
                (ethernet / v6 / Extension::hop_by_hop() / syn(40_009) / padding).fragments(24),
            ),
        ])
    }

    #[test]
    fn a_syn_in_every_disguise_is_answered_and_a_firewall_stops_it() {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            for (disguise, source, port, frames) in disguises(&peer)? {
                assert!(answered(&peer, source, port, &frames)?, "{disguise}");
            }
            filter_input("tcp dport 4118 drop")?;
            for (disguise, source, port, frames) in disguises(&peer)? {
                assert!(!answered(&peer, source, port, &frames)?, "{disguise}");
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_frame_with_another_vlan_is_not_for_this_host() {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            let v4 = Ipv4::new(peer.v4(), peer.host_v4());
            let frame = ethernet(&peer)? / Vlan::id(7) / v4 / Tcp::syn(40_001, 4118);
            assert!(!answered(&peer, peer.v4().into(), 40_001, &[frame])?);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn an_interface_that_is_missing_is_named() {
        let error = Lab::run(|_| Wire::open("nope0").map(drop)).unwrap_err();
        assert!(error.to_string().contains("there is no interface nope0"), "{error}");
    }
}
