//! What is said where the kernel has no nf_tables.

use nix::errno::Errno;

/// The kernel has no nf_tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this kernel has no nf_tables (CONFIG_NF_TABLES, module nf_tables){}", forbidden())]
pub(crate) struct NoNfTables;

/// Why a netlink socket could not be opened.
pub(super) fn cannot_open(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::EPROTONOSUPPORT => NoNfTables.into(),
        errno => anyhow::Error::from(errno).context("cannot open a netlink socket"),
    }
}

/// Whether the kernel may load no module any more, in words.
fn forbidden() -> &'static str {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/modules_disabled");
    if disabled.is_ok_and(|value| value.trim() == "1") {
        ", and may load no module (kernel.modules_disabled=1): list nf_tables and nft_fib_inet in \
         /etc/modules-load.d/agent-fw.conf and reboot"
    } else {
        ""
    }
}
