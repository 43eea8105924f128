//! Reading a captured frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::TcpFlags;

/// What a captured TCP segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sends.
    pub source: SocketAddr,
    /// Who is to receive.
    pub destination: SocketAddr,
    /// The number of the first byte.
    pub sequence: u32,
    /// The number of the byte that is expected next.
    pub acknowledgement: u32,
    /// The flags.
    pub flags: TcpFlags,
}

impl Segment {
    /// Reads a frame; `None` if it is not TCP. It reads what a Linux host answers with: VLAN
    /// tags and IPv4 options, but neither fragments nor extension headers.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (source, destination, tcp) = match inside_ethernet(frame)? {
            (0x0800, datagram) => inside_ipv4(datagram)?,
            (0x86dd, datagram) => inside_ipv6(datagram)?,
            _ => return None,
        };
        Some(Self {
            source: SocketAddr::new(source, u16::from_be_bytes(array(tcp, 0)?)),
            destination: SocketAddr::new(destination, u16::from_be_bytes(array(tcp, 2)?)),
            sequence: u32::from_be_bytes(array(tcp, 4)?),
            acknowledgement: u32::from_be_bytes(array(tcp, 8)?),
            flags: TcpFlags(*tcp.get(13)?),
        })
    }

    /// Whether it is the second step of a handshake: somebody listens and lets us in.
    #[must_use]
    pub fn is_syn_ack(&self) -> bool {
        self.flags.contains(TcpFlags::SYN | TcpFlags::ACK)
    }
}

fn inside_ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut offset = 12;
    loop {
        let ether_type = u16::from_be_bytes(array(frame, offset)?);
        match ether_type {
            0x8100 | 0x88a8 => offset += 4,
            _ => return Some((ether_type, frame.get(offset + 2..)?)),
        }
    }
}

fn inside_ipv4(datagram: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(datagram.first()? & 0x0f) * 4;
    let source = Ipv4Addr::from(array(datagram, 12)?);
    let destination = Ipv4Addr::from(array(datagram, 16)?);
    let fragment = u16::from_be_bytes(array(datagram, 6)?) & 0x1fff;
    let is_tcp = *datagram.get(9)? == super::transport::TCP && fragment == 0;
    is_tcp.then_some((source.into(), destination.into(), datagram.get(header..)?))
}

fn inside_ipv6(datagram: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let source = Ipv6Addr::from(array::<16>(datagram, 8)?);
    let destination = Ipv6Addr::from(array::<16>(datagram, 24)?);
    let is_tcp = *datagram.get(6)? == super::transport::TCP;
    is_tcp.then_some((source.into(), destination.into(), datagram.get(40..)?))
}

/// The `N` bytes at `offset`.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::Segment;
    use crate::mac::MacAddr;
    use crate::packet::{Ethernet, Ipv4, Ipv6, Packet, Tcp, TcpFlags, Udp, Vlan};

    fn frames() -> [Packet; 2] {
        let ethernet = Ethernet::new(MacAddr([2; 6]), MacAddr([4; 6]));
        let v4 = Ipv4::new([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let v6 = Ipv6::new("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let tcp = Tcp { flags: TcpFlags::SYN | TcpFlags::ACK, ..Tcp::syn(4118, 40_000) };
        [
            ethernet / Vlan::id(3) / Ipv4 { options: vec![1; 4], ..v4 } / tcp.clone(),
            ethernet / v6 / tcp,
        ]
    }

    #[test]
    fn a_segment_reads_as_it_was_built() {
        let read = frames().map(|frame| Segment::parse(&frame.bytes()).unwrap());
        assert_eq!(read[0].source, "192.0.2.1:4118".parse().unwrap());
        assert_eq!(read[0].destination, "192.0.2.2:40000".parse().unwrap());
        assert_eq!(read[1].source, "[2001:db8::1]:4118".parse().unwrap());
        assert_eq!(read[1].destination, "[2001:db8::2]:40000".parse().unwrap());
        assert!(read.iter().all(Segment::is_syn_ack));
        assert_eq!(read[1].sequence, 0x4118_0000);
    }

    #[test]
    fn what_is_cut_short_or_not_tcp_is_no_segment() {
        for frame in frames() {
            let bytes = frame.bytes();
            // The flags are in the 14th byte of the 20 of TCP.
            let needed = bytes.len() - 20 + 14;
            assert!((0..needed).all(|length| Segment::parse(&bytes[..length]).is_none()));
        }
        let ethernet = Ethernet::new(MacAddr([2; 6]), MacAddr([4; 6]));
        let ip = Ipv4::new([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert_eq!(Segment::parse(&(ethernet / ip / Udp::new(1, 2)).bytes()), None);
    }
}
