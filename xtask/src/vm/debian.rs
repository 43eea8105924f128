//! A Debian for virtual machines, as a directory: systemd, firewalls, and the stock kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cached;
use crate::process::run;

const RELEASE: &str = "bookworm";
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
    cached("debian", &recipe, |place| {
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
        run(mmdebstrap.arg(RELEASE).arg(place).arg(sources()?))
    })
}

/// Where this machine's own Debian comes from.
fn sources() -> Result<PathBuf> {
    for candidate in ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"] {
        let text = fs::read_to_string(candidate).unwrap_or_default();
        if text.contains(RELEASE) {
            return Ok(Path::new(candidate).to_owned());
        }
    }
    bail!(
        "virtual machines need a Debian 12: neither /etc/apt/sources.list nor \
         /etc/apt/sources.list.d/debian.sources names {RELEASE}; --kernel host tests without them"
    )
}

/// The address of the archive that this machine's own Debian comes from.
pub(super) fn mirror() -> Result<String> {
    let path = sources()?;
    let text = fs::read_to_string(&path)?;
    archive(&text).with_context(|| format!("{} names no archive of {RELEASE}", path.display()))
}

/// The archive's address in apt's list of sources, of either format.
fn archive(list: &str) -> Option<String> {
    let is_ours = |suites: &str| suites.split_whitespace().any(|suite| suite == RELEASE);
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let of_paragraph = |paragraph: &str| {
        let uris = field(paragraph, "URIs:")
            .filter(|_| field(paragraph, "Suites:").is_some_and(|suites| is_ours(&suites)))?;
        uris.split_whitespace().next().map(str::to_owned)
    };
    let of_line = |line: &str| {
        let words = line.strip_prefix("deb ")?.trim_start();
        let words = words.split_once(']').filter(|_| words.starts_with('[')).map_or(words, |w| w.1);
        let (uri, suites) = words.trim_start().split_once(' ')?;
        is_ours(suites).then(|| uri.to_owned())
    };
    list.split("\n\n").find_map(of_paragraph).or_else(|| list.lines().find_map(of_line))
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[test]
    fn the_archive_is_found_in_both_formats_and_is_not_that_of_security() {
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\n# a snapshot\nURIs: {uri}\nSuites: {suites}\nComponents: main\n")
        };
        let security = stanza("http://security.example/debian", "bookworm-security");
        let main = stanza("http://archive.example/debian", "bookworm bookworm-updates");
        let found = archive(&format!("{security}\n{main}"));
        assert_eq!(found.as_deref(), Some("http://archive.example/debian"));
        let lines = "deb http://security.example/debian bookworm-security main\n\
                     # deb http://old.example/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://archive.example/debian bookworm main\n";
        assert_eq!(archive(lines).as_deref(), Some("http://archive.example/debian"));
        assert_eq!(archive(""), None);
    }
}
