//! What xtask needs of a machine, and the packages that bring it.

use std::process::Command;

use crate::process::{find, succeeds};

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Building agent-fw.
    Build,
    /// The end-to-end tests and the demonstration.
    Test,
    /// What agent-fw is measured beside.
    Bench,
    /// Building packages.
    Dist,
    /// Building static programs for this machine's architecture.
    Static,
    /// The same for ARM's, on another.
    StaticAarch64,
    /// The same for Intel's and AMD's, on another.
    StaticX86_64,
    /// Tests of packages, which are Debian's business.
    Debian,
    /// Tests in virtual machines.
    Vm,
    /// A kernel in user mode.
    UserMode,
}

/// One thing that has to be there.
pub(super) struct Need {
    pub(super) group: Group,
    pub(super) probe: Probe,
    pub(super) why: &'static str,
    /// The packages that bring it, per package manager.
    pub(super) apt: &'static [&'static str],
    pub(super) dnf: &'static [&'static str],
    pub(super) pacman: &'static [&'static str],
    pub(super) apk: &'static [&'static str],
}

pub(super) enum Probe {
    Program(&'static str),
    /// A C library with its headers, as pkg-config knows it.
    Library {
        name: &'static str,
        at_least: &'static str,
    },
}

impl Probe {
    /// Whether it is there.
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::Program(name) => find(name).is_some(),
            // Without pkg-config every library counts as missing; then all are asked for, and
            // the package manager leaves alone those that are there.
            Self::Library { name, at_least } => find("pkg-config").is_some_and(|pkg_config| {
                succeeds(
                    Command::new(pkg_config).arg(format!("--atleast-version={at_least}")).arg(name),
                )
            }),
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Program(name) => format!("the program {name}"),
            Self::Library { name, at_least } => format!("the library {name} ({at_least} or newer)"),
        }
    }
}

pub(super) const NEEDS: &[Need] = &[
    Need {
        group: Group::Build,
        probe: Probe::Program("cc"),
        why: "links Rust programs",
        apt: &["gcc", "libc6-dev"],
        dnf: &["gcc"],
        pacman: &["gcc"],
        apk: &["gcc", "musl-dev"],
    },
    Need {
        group: Group::Build,
        probe: Probe::Program("pkg-config"),
        why: "finds C libraries",
        apt: &["pkg-config"],
        dnf: &["pkgconf-pkg-config"],
        pacman: &["pkgconf"],
        apk: &["pkgconf"],
    },
    Need {
        group: Group::Build,
        // The version whose functions the crate nftnl is told to use, in Cargo.toml.
        probe: Probe::Library { name: "libnftnl", at_least: "1.2.4" },
        why: "speaks nf_tables to the kernel",
        apt: &["libnftnl-dev"],
        dnf: &["libnftnl-devel"],
        pacman: &["libnftnl"],
        apk: &["libnftnl-dev"],
    },
    Need {
        group: Group::Build,
        probe: Probe::Library { name: "libmnl", at_least: "1.0.3" },
        why: "carries netlink messages",
        apt: &["libmnl-dev"],
        dnf: &["libmnl-devel"],
        pacman: &["libmnl"],
        apk: &["libmnl-dev"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("nft"),
        why: "shows tests what the kernel holds",
        apt: &["nftables"],
        dnf: &["nftables"],
        pacman: &["nftables"],
        apk: &["nftables"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("ip"),
        why: "makes the tests' networks",
        apt: &["iproute2"],
        dnf: &["iproute"],
        pacman: &["iproute2"],
        apk: &["iproute2"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("iptables-legacy"),
        why: "is another firewall of a test's host",
        apt: &["iptables"],
        dnf: &["iptables-legacy", "iptables-nft"],
        pacman: &["iptables"],
        apk: &["iptables-legacy", "iptables"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("ipset"),
        why: "has sets that rules of a test's host change",
        apt: &["ipset"],
        dnf: &["ipset"],
        pacman: &["ipset"],
        apk: &["ipset"],
    },
    Need {
        group: Group::Test,
        // Installed, it does nothing until it is enabled.
        probe: Probe::Program("ufw"),
        why: "is another firewall of a test's host",
        apt: &["ufw"],
        dnf: &["ufw"],
        pacman: &["ufw"],
        apk: &["ufw"],
    },
    Need {
        group: Group::Test,
        // Its package starts it where systemd runs; see `keep_from_starting`.
        probe: Probe::Program("firewall-cmd"),
        why: "is another firewall of a test's host",
        apt: &["firewalld"],
        dnf: &["firewalld"],
        pacman: &["firewalld"],
        apk: &["firewalld"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("ipvsadm"),
        why: "distributes connections on a test's host",
        apt: &["ipvsadm"],
        dnf: &["ipvsadm"],
        pacman: &["ipvsadm"],
        apk: &["ipvsadm"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("openssl"),
        why: "speaks TLS as the agent of a test's host",
        apt: &["openssl"],
        dnf: &["openssl"],
        pacman: &["openssl"],
        apk: &["openssl"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("dbus-daemon"),
        why: "is the message bus of a test's firewalld",
        apt: &["dbus-daemon"],
        dnf: &["dbus-daemon"],
        pacman: &["dbus"],
        apk: &["dbus"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("xdp-filter"),
        why: "puts the dispatcher of libxdp on a test's interface",
        apt: &["xdp-tools"],
        dnf: &["xdp-tools"],
        pacman: &["xdp-tools"],
        apk: &["xdp-tools"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("systemctl"),
        why: "enables the boot unit of a test's host",
        apt: &["systemd"],
        dnf: &["systemd"],
        pacman: &["systemd"],
        // Alpine has no systemd: the tests of the boot unit are skipped there.
        apk: &[],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("setpriv"),
        why: "runs agent-fw without privileges",
        apt: &["util-linux"],
        dnf: &["util-linux"],
        pacman: &["util-linux"],
        apk: &["setpriv"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("script"),
        why: "gives agent-fw a terminal",
        apt: &["bsdutils"],
        dnf: &["util-linux-script"],
        pacman: &["util-linux"],
        apk: &["util-linux-misc"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("zsh"),
        why: "completes words in a test",
        apt: &["zsh"],
        dnf: &["zsh"],
        pacman: &["zsh"],
        apk: &["zsh"],
    },
    Need {
        group: Group::Test,
        probe: Probe::Program("fish"),
        why: "completes words in a test",
        apt: &["fish"],
        dnf: &["fish"],
        pacman: &["fish"],
        apk: &["fish"],
    },
    Need {
        group: Group::Dist,
        // The other programs that pack (tar, gzip, sha256sum) are on every system.
        probe: Probe::Program("dpkg-deb"),
        why: "builds Debian's package",
        apt: &["dpkg"],
        dnf: &["dpkg"],
        pacman: &["dpkg"],
        apk: &["dpkg"],
    },
    Need {
        group: Group::Static,
        probe: Probe::Program("musl-gcc"),
        why: "compiles the C in a static program",
        apt: &["musl-tools"],
        dnf: &["musl-gcc"],
        pacman: &["musl"],
        apk: &["musl-dev"],
    },
    Need {
        group: Group::Static,
        probe: Probe::Program("ar"),
        why: "makes one archive of two",
        apt: &["binutils"],
        dnf: &["binutils"],
        pacman: &["binutils"],
        apk: &["binutils"],
    },
    Need {
        group: Group::StaticAarch64,
        probe: Probe::Program("aarch64-linux-gnu-gcc"),
        why: "compiles the C in a static program for ARM",
        apt: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        dnf: &["gcc-aarch64-linux-gnu"],
        pacman: &["aarch64-linux-gnu-gcc"],
        apk: &[],
    },
    Need {
        group: Group::StaticX86_64,
        probe: Probe::Program("x86_64-linux-gnu-gcc"),
        why: "compiles the C in a static program for Intel's and AMD's processors",
        apt: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
        dnf: &["gcc-x86_64-linux-gnu"],
        pacman: &[],
        apk: &[],
    },
    Need {
        group: Group::Dist,
        probe: Probe::Program("rpmbuild"),
        why: "builds Red Hat's package",
        apt: &["rpm"],
        dnf: &["rpm-build"],
        pacman: &["rpm-tools"],
        apk: &["rpm"],
    },
    Need {
        group: Group::Test,
        // Of the server's package, which would start it; see `keep_from_starting`.
        probe: Probe::Program("promtool"),
        why: "reads metrics as Prometheus does",
        apt: &["prometheus"],
        dnf: &["golang-github-prometheus"],
        pacman: &["prometheus"],
        apk: &["prometheus"],
    },
    Need {
        group: Group::Dist,
        probe: Probe::Program("xz"),
        why: "compresses packages",
        apt: &["xz-utils"],
        dnf: &["xz"],
        pacman: &["xz"],
        apk: &["xz"],
    },
    Need {
        group: Group::Debian,
        probe: Probe::Program("ansible-playbook"),
        why: "manages a fleet of two",
        // The second is what its module for packages needs on the managed host.
        apt: &["ansible-core", "python3-apt"],
        dnf: &[],
        pacman: &[],
        apk: &[],
    },
    Need {
        group: Group::Debian,
        probe: Probe::Program("lintian"),
        why: "checks Debian's package",
        apt: &["lintian"],
        dnf: &[],
        pacman: &[],
        apk: &[],
    },
    Need {
        group: Group::Vm,
        probe: Probe::Program("mmdebstrap"),
        why: "makes the Debian of virtual machines",
        apt: &["mmdebstrap"],
        dnf: &["mmdebstrap"],
        pacman: &["mmdebstrap"],
        apk: &["mmdebstrap"],
    },
    Need {
        group: Group::Vm,
        probe: Probe::Program("mke2fs"),
        why: "makes the disks of virtual machines",
        apt: &["e2fsprogs"],
        dnf: &["e2fsprogs"],
        pacman: &["e2fsprogs"],
        apk: &["e2fsprogs"],
    },
    Need {
        group: Group::Bench,
        probe: Probe::Program("ipset"),
        why: "is measured beside agent-fw's gate",
        apt: &["ipset"],
        dnf: &["ipset"],
        pacman: &["ipset"],
        apk: &["ipset"],
    },
    Need {
        group: Group::Bench,
        probe: Probe::Program("iptables"),
        why: "looks into ipset's sets",
        apt: &["iptables"],
        dnf: &["iptables"],
        pacman: &["iptables"],
        apk: &["iptables"],
    },
    Need {
        group: Group::UserMode,
        probe: Probe::Program("xz"),
        why: "unpacks a kernel's sources",
        apt: &["xz-utils"],
        dnf: &["xz"],
        pacman: &["xz"],
        apk: &["xz"],
    },
    Need {
        group: Group::UserMode,
        probe: Probe::Program("make"),
        why: "builds a kernel",
        apt: &["make"],
        dnf: &["make"],
        pacman: &["make"],
        apk: &["make"],
    },
    Need {
        group: Group::UserMode,
        probe: Probe::Program("flex"),
        why: "builds a kernel",
        apt: &["flex"],
        dnf: &["flex"],
        pacman: &["flex"],
        apk: &["flex"],
    },
    Need {
        group: Group::UserMode,
        probe: Probe::Program("bison"),
        why: "builds a kernel",
        apt: &["bison"],
        dnf: &["bison"],
        pacman: &["bison"],
        apk: &["bison"],
    },
    Need {
        group: Group::UserMode,
        probe: Probe::Program("bc"),
        why: "builds a kernel",
        apt: &["bc"],
        dnf: &["bc"],
        pacman: &["bc"],
        apk: &["bc"],
    },
];

#[cfg(test)]
mod tests {
    use super::{Group, NEEDS, Probe};

    #[test]
    fn every_need_names_its_packages_for_every_manager() {
        // Packages are tested on Debian, and programs of another architecture are built there.
        let debians = [Group::Debian, Group::StaticAarch64, Group::StaticX86_64];
        for need in NEEDS.iter().filter(|need| !debians.contains(&need.group)) {
            for list in [need.apt, need.dnf, need.pacman] {
                assert!(!list.is_empty(), "{}", need.probe.describe());
            }
            let systemd = matches!(need.probe, Probe::Program("systemctl"));
            assert_eq!(need.apk.is_empty(), systemd, "{}", need.probe.describe());
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        assert!(!Probe::Program("no-such-program").holds());
        assert!(!Probe::Library { name: "no-such-library", at_least: "1" }.holds());
        assert!(Probe::Program("env").holds());
    }
}
