//! A Debian for virtual machines, as a directory: systemd, firewalls, and the stock kernels.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::directory;
use crate::apt::{self, RELEASE};
use crate::cache::cached;
use crate::process::run;

const PACKAGES: [&str; 17] = [
    "bsdutils",
    "dbus",
    "firewalld",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-6.12-cloud-amd64",
    "linux-image-cloud-amd64",
    "netbase",
    "nftables",
    "procps",
    "systemd",
    "systemd-sysv",
    "udev",
    "ufw",
    "util-linux",
    "xdp-tools",
];
/// The disk's driver is loaded and its device made without udev's help, which takes seconds.
const LEFT_OUT: &str = "path-exclude=/usr/share/initramfs-tools/*/udev";
/// An initial file system with these modules alone takes seconds less to load.
const HOOKS: [&str; 3] = [
    r#"mkdir -p "$1/etc/initramfs-tools/conf.d""#,
    r#"echo MODULES=list > "$1/etc/initramfs-tools/conf.d/modules""#,
    r#"printf 'virtio_pci\nvirtio_blk\n' > "$1/etc/initramfs-tools/modules""#,
];

/// What a test wants to run, it starts.
const DISABLING: &str = r#"chroot "$1" systemctl disable --quiet firewalld ufw"#;
/// What no test needs. A machine boots many times, and each of these starts a process, which takes
/// a good part of a second under emulation.
const MASKED: [&str; 20] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-debug.mount",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
];

/// The directory with Debian in it.
pub(super) fn ensure() -> Result<PathBuf> {
    let recipe = (RELEASE, PACKAGES, LEFT_OUT, HOOKS, DISABLING, MASKED);
    cached(directory(), "debian", &recipe, |place| {
        eprintln!("xtask: making a Debian {RELEASE} for virtual machines; this takes a minute");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--variant=minbase", "--quiet", "--format=directory"]);
        mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
        mmdebstrap.arg(format!("--dpkgopt={LEFT_OUT}"));
        // mmdebstrap gives each hook to a shell, with the new root as its argument.
        mmdebstrap.args(HOOKS.map(|hook| format!("--essential-hook={hook}")));
        mmdebstrap.arg(format!("--customize-hook={DISABLING}"));
        let masking = format!(r#"chroot "$1" systemctl mask --quiet {}"#, MASKED.join(" "));
        mmdebstrap.arg(format!("--customize-hook={masking}"));
        run(mmdebstrap.arg(RELEASE).arg(place).arg(apt::sources()?))
    })
}
