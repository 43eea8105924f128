//! Frames that are sent as they are, by an interface.
#![allow(unsafe_code, reason = "nix has no address of the link layer that one could make")]

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// What sends them. It receives nothing.
pub(crate) struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// Opens it; its frames have this mark.
    pub(crate) fn open(mark: u32) -> nix::Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        if mark != 0 {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        Ok(Self(socket))
    }

    /// Sends an Ethernet frame by an interface.
    pub(crate) fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let kind = frame.get(12..).and_then(<[u8]>::first_chunk::<2>).copied().unwrap_or_default();
        let to = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
            sll_protocol: u16::from_ne_bytes(kind),
            sll_ifindex: interface.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>());
        let length = length.map_err(io::Error::other)?;
        // SAFETY: the kernel reads the frame and the address, each no further than its length.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                length,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }
}
