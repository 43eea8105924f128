//! The lab: a host of its own on one thread, with private network, mounts and state.

use std::cell::Cell;
use std::fs;
use std::panic;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::command::run;
use crate::namespace::{Namespace, set_sysctl};
use crate::peer::Peer;

/// Where the lab keeps what its mounts need, inside its own `/run`.
const STATE: &str = "/run/lab";

/// A host of its own: the network, `/run`, `/sys` and changes to `/etc` are seen by one
/// thread and the processes that it starts, by nobody else, and are gone with them.
#[derive(Debug)]
pub struct Lab {
    host: Namespace,
    peers: Cell<u8>,
}

impl Lab {
    /// Builds a lab on a thread of its own, runs `experiment` there and returns its value. A
    /// panic in there goes on here. Any number of labs can run at once.
    pub fn run<T: Send>(experiment: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        // The name of the test, so that a panic's message still tells it.
        let name = thread::current().name().unwrap_or("lab").to_owned();
        thread::scope(|scope| {
            thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, || Self::build().and_then(|lab| experiment(&lab)))
                .context("cannot start a thread for the lab")?
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Why no lab can be built by this process, in words for whoever skips a test for it;
    /// `None` if one can.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        (!geteuid().is_root()).then_some("network namespaces need root")
    }

    /// Turns the calling thread into the lab's. There is no way back: the thread must end.
    fn build() -> Result<Self> {
        if let Some(reason) = Self::missing() {
            bail!("cannot build a lab: {reason}");
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("cannot make namespaces of our own (CAP_SYS_ADMIN is needed)")?;
        make_mounts_private()?;
        mount_fresh("tmpfs", "/run")?;
        // The old /sys shows the interfaces of the real host.
        mount_fresh("sysfs", "/sys")?;
        if Path::new("/sys/fs/bpf").exists() {
            mount_fresh("bpf", "/sys/fs/bpf")?;
        }

        let lab = Self { host: Namespace::current("the lab's host")?, peers: Cell::new(0) };
        lab.overlay("/etc")?;
        lab.overlay("/var/lib")?;
        forget_installation()?;
        set_defaults()?;
        run(["ip", "link", "set", "lo", "up"])?;
        Ok(lab)
    }

    /// The host's network namespace, to come back to it from inside a peer's.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// Adds another host, connected with a veth pair: interface `NAME0` here, `eth0` there.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let number = self.peers.get().checked_add(1).context("a lab has at most 255 peers")?;
        self.peers.set(number);
        Peer::connect(&self.host, name, number).with_context(|| format!("cannot add peer {name}"))
    }

    /// Makes the host forward packets between its peers, which have it as their gateway.
    pub fn forward(&self) -> Result<()> {
        self.host.set_sysctl("net/ipv4/ip_forward", "1")?;
        self.host.set_sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Keeps what happens below `directory` to this lab: its contents are there, changes to
    /// them are not seen outside. `/etc` and `/var/lib` are laid over from
    /// the start.
    pub fn overlay(&self, directory: &str) -> Result<()> {
        let state = Path::new(STATE).join(directory.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (state.join("upper"), state.join("work"));
        if upper.exists() {
            return Ok(());
        }
        for needed in [&upper, &work] {
            fs::create_dir_all(needed)
                .with_context(|| format!("cannot create {}", needed.display()))?;
        }
        let options =
            format!("lowerdir={directory},upperdir={},workdir={}", upper.display(), work.display());
        mount(Some("overlay"), directory, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("cannot mount an overlay on {directory} ({options})"))
    }
}

/// Hides an agent-fw that the real host has: the lab's host begins without one.
fn forget_installation() -> Result<()> {
    for directory in ["/etc/agent-fw", "/var/lib/agent-fw"] {
        if Path::new(directory).exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("cannot hide the real host's {directory}"))?;
        }
    }
    let units = "/etc/systemd/system";
    for file in [
        "agent-fw.service",
        "nftables.service.d/agent-fw.conf",
        "netfilter-persistent.service.d/agent-fw.conf",
        "iptables.service.d/agent-fw.conf",
    ] {
        let path = Path::new(units).join(file);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path)
                .with_context(|| format!("cannot hide the real host's {}", path.display()))?;
        }
    }
    Ok(())
}

/// Keeps the mounts that follow from spreading to the real host.
fn make_mounts_private() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("cannot make the mounts below / private")
}

fn mount_fresh(kind: &str, directory: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(kind), directory, Some(kind), flags, None::<&str>)
        .with_context(|| format!("cannot mount a fresh {kind} on {directory}"))
}

/// Parameters that a new namespace takes over from the real host or that would cost time,
/// so that every lab starts alike; to be called inside the namespace, before it has links.
pub(crate) fn set_defaults() -> Result<()> {
    for (parameter, value) in [
        // Duplicate address detection keeps a new link's address unusable for a second or two.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // Taken over from the real host for IPv4; a test that is about it sets it.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_forward", "0"),
    ] {
        set_sysctl(parameter, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::Lab;
    use crate::command::run;

    #[test]
    fn what_a_lab_writes_to_run_and_etc_is_not_seen_outside() {
        let name = format!("agent-fw-lab-test-{}", std::process::id());
        let (state, config) = (format!("/run/{name}"), format!("/etc/{name}"));
        Lab::run(|_| {
            fs::write(&state, "x")?;
            fs::write(&config, "x")?;
            // Processes see what the thread sees.
            run(["ls", &state, &config])?;
            Ok(())
        })
        .unwrap();
        assert!(!Path::new(&state).exists());
        assert!(!Path::new(&config).exists());
    }

    #[test]
    fn a_lab_starts_with_loopback_alone_and_no_rules() {
        let (links, rules, class) = Lab::run(|_| {
            let links = run(["ip", "-o", "link"])?;
            let rules = run(["nft", "list", "ruleset"])?;
            Ok((links, rules, run(["ls", "/sys/class/net"])?))
        })
        .unwrap();
        assert_eq!(links.lines().count(), 1, "{links}");
        assert_eq!(rules, "");
        assert_eq!(class.trim(), "lo");
    }

    #[test]
    fn mounts_of_a_lab_do_not_reach_the_real_host() {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        Lab::run(|lab| {
            lab.peer("manager")?;
            lab.overlay("/var/cache")
        })
        .unwrap();
        let after = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        assert_eq!(before, after);
    }

    #[test]
    fn labs_run_side_by_side_without_meeting() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Lab::run(|lab| lab.peer("manager").map(drop)).unwrap());
            }
        });
    }

    #[test]
    fn an_error_and_a_value_come_out_of_a_lab() {
        assert_eq!(Lab::run(|_| Ok(7)).unwrap(), 7);
        let error = Lab::run::<()>(|_| anyhow::bail!("on purpose")).unwrap_err();
        assert_eq!(error.to_string(), "on purpose");
    }

    #[test]
    #[should_panic(expected = "panics come out of a lab")]
    fn a_panic_comes_out_of_a_lab() {
        let _: anyhow::Result<()> = Lab::run(|_| panic!("panics come out of a lab"));
    }
}
