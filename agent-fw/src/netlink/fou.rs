//! UDP ports at which the kernel takes other packets out of UDP: FOU, "foo over UDP", and GUE.

use crate::netlink::generic;
use crate::netlink::message::attributes;

/// Such a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) is_v4: bool,
    pub(crate) carries: Carries,
}

/// What packets to such a port carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carries {
    /// This protocol.
    Protocol(u8),
    /// Whatever protocol a header of theirs names (GUE).
    Any,
}

impl Carries {
    /// Whether TCP may come out of them. The kernel hands it to TCP as it is, past the hook `input`.
    pub(crate) fn may_be_tcp(self) -> bool {
        const TCP: u8 = 6;
        matches!(self, Self::Any | Self::Protocol(TCP))
    }
}

/// The ports of this network namespace.
pub(crate) fn ports() -> nix::Result<Vec<Port>> {
    /// `FOU_CMD_GET` of linux/fou.h.
    const GET: u8 = 3;
    let Some(family) = generic::family("fou") else { return Ok(Vec::new()) };
    Ok(generic::dump(family, GET)?.iter().filter_map(|body| parse(body)).collect())
}

fn parse(body: &[u8]) -> Option<Port> {
    /// `FOU_ATTR_PORT`, `AF`, `IPPROTO`, `TYPE`; `FOU_ENCAP_GUE`.
    const NUMBER: u16 = 1;
    const FAMILY: u16 = 2;
    const PROTOCOL: u16 = 3;
    const KIND: u16 = 4;
    const GUE: u8 = 2;
    let find = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let byte = |wanted| find(wanted).and_then(|value| value.first().copied());
    let is_gue = byte(KIND) == Some(GUE);
    Some(Port {
        number: u16::from_be_bytes(*find(NUMBER)?.first_chunk()?),
        is_v4: byte(FAMILY).is_none_or(|family| i32::from(family) == libc::AF_INET),
        carries: if is_gue { Carries::Any } else { Carries::Protocol(byte(PROTOCOL)?) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::attribute;

    #[test]
    fn a_port_is_read() {
        let port = |kind: u8, protocol: u8| {
            let all = [(1, &[0x15, 0xb3][..]), (2, &[2]), (3, &[protocol]), (4, &[kind])];
            let body = all.map(|(kind, value)| attribute(kind, value)).concat();
            parse(&body).expect("a port")
        };
        let carries = Carries::Protocol(6);
        assert_eq!(port(1, 6), Port { number: 5555, is_v4: true, carries });
        assert!(port(1, 6).carries.may_be_tcp() && port(2, 0).carries.may_be_tcp());
        assert!(!port(1, 4).carries.may_be_tcp());
        assert_eq!(parse(&[]), None);
    }
}
