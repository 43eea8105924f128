//! What stands in the way of an XDP program, and what to do about it.

use super::alone::Objection;
use super::state::Hook;
use crate::xdp::compile::Unencodable;
use agent_fw_ebpf::{LoadError, PlanError};
use aya::programs::tc::TcError;
use aya::programs::{ProgramError, XdpError as AyaXdpError};
use nix::errno::Errno;
use std::path::PathBuf;

/// What went wrong with XDP.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The policy cannot be given to XDP.
    #[error("this policy cannot be given to XDP")]
    Policy(#[from] Unencodable),
    /// The tables could not be made.
    #[error("the tables could not be made")]
    Plan(#[from] PlanError),
    /// The kernel refused tables or program.
    #[error("the kernel refused the XDP program or its tables (it needs Linux 6.1 or newer)")]
    Load(#[from] LoadError),
    /// The verifier refused the program.
    #[error("the kernel refused the XDP program (it needs Linux 6.1 or newer)")]
    Program(#[source] ProgramError),
    /// An interface cannot take the program.
    #[error("interface {interface} cannot take the XDP program")]
    Interface {
        /// The interface.
        interface: String,
        /// Why not.
        #[source]
        obstacle: Obstacle,
    },
    /// Interfaces that are named but not there.
    #[error("there is no interface {}", .0.join(", "))]
    NoInterface(Vec<String>),
    /// No interface is named, and none is found.
    #[error("no physical interface is up; name one with --interface")]
    NoPhysical,
    /// The program would cut others off if it stood alone.
    #[error(
        "--backend xdp would also drop others' packets to that port: {}; choose --backend both, \
         where the table tells them apart",
        listed(.0)
    )]
    Alone(Vec<Objection>),
    /// There is no bpffs.
    #[error("no BPF file system at /sys/fs/bpf: `mount -t bpf bpf /sys/fs/bpf`")]
    NoFileSystem,
    /// More interfaces than can be counted for.
    #[error("more than {} interfaces", agent_fw_ebpf::Label::MAX)]
    TooManyInterfaces,
    /// Somebody else reads the samples.
    #[error("another `agent-fw watch` is running; a refused packet can be told of once")]
    Watched,
    /// A program is on an interface, and its pin is not there.
    #[error("a program's pin below /sys/fs/bpf/agent-fw is missing; uninstall, then install again")]
    NotPinned,
    /// A pin could not be made, read or removed.
    #[error("{}: {action}", .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What was being done with it.
        action: &'static str,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The interfaces could not be listed, or a file not be written.
    #[error(transparent)]
    Host(#[from] anyhow::Error),
}

fn listed(objections: &[Objection]) -> String {
    objections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why an interface cannot take a program, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// Somebody put a program there just now.
    #[error(
        "another XDP program was put on it just now (EBUSY; `ip link show` tells); agent-fw leaves \
         it alone: run this again, and it goes to the tc hook behind"
    )]
    Occupied,
    /// The driver knows no XDP.
    #[error(
        "its driver has no native XDP (EOPNOTSUPP); choose --xdp-mode generic, or --backend nft, \
         which is faster than generic XDP"
    )]
    Unsupported,
    /// The driver cannot do it as things are.
    #[error(
        "its driver refuses native XDP as it is set up (EINVAL): often large receive offload or \
         too few queues (`dmesg` tells); switch off LRO, or choose --backend nft"
    )]
    Refused,
    /// Frames are too large.
    #[error(
        "its MTU of {mtu}, or that of its other end, is too large for XDP in this driver (ERANGE); \
         lower the MTU, or choose --backend nft"
    )]
    Mtu {
        /// The MTU.
        mtu: u32,
    },
    /// The tc hook does not take it.
    #[error(
        "another XDP program has its driver, and {hook} behind it refuses the program ({errno}): \
         another filter may have the first priority there (`tc filter show dev NAME ingress` \
         tells); --backend nft filters behind both"
    )]
    AtTc {
        /// How it was to be attached.
        hook: Hook,
        /// What the kernel said.
        errno: Errno,
    },
    /// Its frames have no Ethernet header.
    #[error(
        "its packets come without an Ethernet header, where XDP cannot find its way; --backend nft \
         filters there"
    )]
    NotEthernet,
    /// The kernel said something else.
    #[error("the kernel refused it: {0}")]
    Other(Errno),
    /// The attachment has no link that would outlive this process.
    #[error("the kernel gave no link for it (it needs Linux 6.1 or newer)")]
    NoLink,
}

impl Obstacle {
    /// What an error of the kernel's means at XDP on an interface with this MTU.
    pub(super) fn at_xdp(errno: Errno, mtu: u32) -> Self {
        match errno {
            Errno::EOPNOTSUPP => Self::Unsupported,
            Errno::EINVAL => Self::Refused,
            Errno::ERANGE => Self::Mtu { mtu },
            Errno::EBUSY | Errno::EEXIST => Self::Occupied,
            errno => Self::Other(errno),
        }
    }
}

/// The kernel's error in one of aya's.
pub(super) fn errno(error: &ProgramError) -> Errno {
    let code = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(AyaXdpError::NetlinkError(error))
        | ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    Errno::from_raw(code.unwrap_or(libc::EIO))
}
