//! Waiting for a descriptor, up to a deadline.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until `descriptor` is ready for one of `events` (or broken, which the next call on
/// it will tell); false when the deadline came first.
pub(crate) fn ready(
    descriptor: &impl AsFd,
    events: PollFlags,
    deadline: Instant,
) -> nix::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A sub-millisecond rest must not round down to a poll that does not wait at all.
        let millis = left.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(descriptor.as_fd(), events)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}
