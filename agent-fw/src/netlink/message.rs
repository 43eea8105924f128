//! The kernel's routing socket, and its generic one: what they list, and what they are asked to do.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::AsRawFd as _;

/// The kernel sends at most 32 KiB of a dump at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Every object of the kind that the request is for: what follows the header of each message.
pub(crate) fn dump(kind: u16, request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkRoute, kind, libc::NLM_F_DUMP, request)
}

/// Asks for something to be done, and waits until it is.
pub(crate) fn order(kind: u16, flags: i32, request: &[u8]) -> nix::Result<()> {
    exchange(SockProtocol::NetlinkRoute, kind, libc::NLM_F_ACK | flags, request).map(drop)
}

/// Asks for one object.
pub(crate) fn get(kind: u16, request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkRoute, kind, libc::NLM_F_ACK, request)
}

/// `SOCK_DIAG_BY_FAMILY`.
const SOCKETS: u16 = 20;

/// Every socket that the request for diagnostics is for.
pub(crate) fn dump_sockets(request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkSockDiag, SOCKETS, libc::NLM_F_DUMP, request)
}

/// The one socket that the request for diagnostics is for.
pub(crate) fn get_socket(request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkSockDiag, SOCKETS, libc::NLM_F_ACK, request)
}

/// Asks a family of generic netlink for one object.
pub(crate) fn get_generic(family: u16, request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkGeneric, family, libc::NLM_F_ACK, request)
}

/// Asks a family of generic netlink for every object of the kind that the request is for.
pub(crate) fn dump_generic(family: u16, request: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    exchange(SockProtocol::NetlinkGeneric, family, libc::NLM_F_DUMP, request)
}

fn exchange(
    protocol: SockProtocol,
    kind: u16,
    flags: i32,
    request: &[u8],
) -> nix::Result<Vec<Vec<u8>>> {
    let flags_of_socket = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags_of_socket, protocol)?;
    let bytes = message_of(kind, libc::NLM_F_REQUEST | flags, request);
    sendto(socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut found = Vec::new();
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, _, body) in messages(&buffer[..length]) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => match body.first_chunk().map(|code| i32::from_ne_bytes(*code))
                {
                    Some(0) => return Ok(found),
                    code => return Err(Errno::from_raw(code.map_or(libc::EIO, |code| -code))),
                },
                _ => found.push(body.to_owned()),
            }
        }
    }
}

/// `struct nlmsghdr`, then the request.
pub(crate) fn message_of(kind: u16, flags: i32, request: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + request.len()).unwrap_or_default();
    let flags = u16::try_from(flags).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    message
}

/// The messages in what was received: type, sequence number, and what follows the header.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// An attribute: its length, its type, and its value, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` of linux/netlink.h.
const ATTRIBUTE_FLAGS: u16 = 3 << 14;

/// The attributes in a run of netlink attributes: each its type, without flags, and its value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & !ATTRIBUTE_FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_is_not_read() {
        assert_eq!(messages(&[32, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 7]).count(), 0);
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = [attribute(1, b"bpf\0"), attribute(7, &[5])].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"bpf\0"[..]), (7, &[5][..])]);
        let sent = message_of(38, libc::NLM_F_REQUEST, &bytes);
        assert_eq!(messages(&sent).collect::<Vec<_>>(), [(38, 0, &bytes[..])]);
    }

    #[test]
    fn what_cannot_be_done_fails_with_the_kernels_word() {
        // A link that is not there, to be deleted: `struct ifinfomsg` with its index.
        let mut request = [0; 16];
        request[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let refused = order(libc::RTM_DELLINK, 0, &request).expect_err("there is no such link");
        assert!(matches!(refused, Errno::ENODEV | Errno::EPERM), "{refused}");
    }
}
