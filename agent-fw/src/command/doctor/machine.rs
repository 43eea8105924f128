//! What this machine has: interfaces, kernel, IPv6, a resolver.

use super::check::{Check, Health};
use crate::command::outcome::Result;
use crate::configuration::{Compiled, Configuration};
use crate::host::interface;
use crate::policy::Label;
use crate::source::OVERRIDES;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::net::ToSocketAddrs as _;
use std::path::Path;

/// Facts of interfaces that matter to XDP.
pub(super) fn interfaces(configuration: Option<&Configuration>) -> Result<Vec<Check>> {
    let wanted = configuration.filter(|known| known.backend.has_programs());
    let why = "the XDP program must be on every interface by which the agent is reached";
    let all = interface::list()?;
    let named = wanted.map_or(&[][..], |known| &known.interfaces);
    let missing = named.iter().filter(|name| !all.iter().any(|known| known.name == **name));
    let missing = missing.map(|name| {
        let seen = format!("{name} is not there; the policy names it");
        Check::new("an interface", why, Health::Bad, seen)
            .advise("agent-fw install names them anew")
    });
    let shown = all.iter().filter(|i| i.is_physical() || named.contains(&i.name));
    let found = shown.map(|interface| {
        let directory = Path::new("/sys/class/net").join(&interface.name);
        let driver = std::fs::read_link(directory.join("device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let driver = driver.unwrap_or_else(|| "no driver of its own".to_owned());
        let queues = std::fs::read_dir(directory.join("queues")).map_or(0, |entries| {
            let is_rx = |name: std::ffi::OsString| name.to_string_lossy().starts_with("rx-");
            entries.flatten().filter(|entry| is_rx(entry.file_name())).count()
        });
        let xdp = interface.xdp.map_or_else(
            || "no XDP program".to_owned(),
            |xdp| format!("{} XDP program {}", xdp.place, xdp.program),
        );
        let (name, mtu) = (&interface.name, interface.mtu);
        let state = if interface.is_up { "up" } else { "down" };
        let seen = format!("{name}: {state}, {driver}, MTU {mtu}, {queues} receive queues, {xdp}");
        let is_down = !interface.is_up && named.contains(name);
        Check::new("an interface", why, if is_down { Health::Note } else { Health::Good }, seen)
    });
    Ok(missing.chain(found).collect())
}

/// What the kernel has of what agent-fw can use.
pub(super) fn kernel() -> Check {
    let why = "what is missing here narrows what agent-fw can do: bpffs and BTF for XDP, \
               /dev/net/tun for explain";
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let bpffs = statfs("/sys/fs/bpf").is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    let features = [
        ("nf_tables", true),
        ("bpffs", bpffs),
        ("BTF", Path::new("/sys/kernel/btf/vmlinux").exists()),
        ("/dev/net/tun", Path::new("/dev/net/tun").exists()),
    ];
    let missing: Vec<&str> =
        features.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Check::new("the kernel", why, Health::Good, format!("Linux {release}, all there"));
    }
    let seen = format!("Linux {release}, without {}", missing.join(", "));
    Check::new("the kernel", why, Health::Note, seen)
}

/// IPv6, and what the policy says of it.
pub(super) fn versions(compiled: &Compiled) -> Check {
    let why = "a manager that comes by IPv6 needs a source of IPv6 in the policy";
    let has_v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let is_reachable = has_v6 && addresses.lines().any(|line| !line.ends_with(" lo"));
    let admits = compiled.lowered.policy.admissions().iter().any(|a| !a.addresses.v6.is_empty());
    let seen = match (is_reachable, admits) {
        (true, true) => "this host has IPv6, and the policy admits sources of it",
        (true, false) => "this host has IPv6; the policy admits no source of it",
        (false, _) => "this host has no IPv6 but on loopback",
    };
    Check::new("IPv6", why, Health::Good, seen)
}

/// Whether the host names of the admitted regions resolve.
pub(super) fn names(compiled: &Compiled) -> Vec<Check> {
    let why = "the agent finds its manager by these names";
    let labels = compiled.lowered.ledger.labels().iter();
    let regions = labels.filter_map(|label| match label {
        Label::Region(name) => Some(name),
        _ => None,
    });
    regions
        .map(|region| {
            let name = format!("agents.workload.{region}.cloudone.trendmicro.com");
            match (name.as_str(), 443).to_socket_addrs() {
                Ok(found) => {
                    let seen = format!("{name} has {} addresses", found.count());
                    Check::new("the region's names", why, Health::Good, seen)
                }
                Err(error) => {
                    let seen = format!("{name} does not resolve: {error}");
                    Check::new("the region's names", why, Health::Bad, seen).advise(format!(
                        "check the resolver (/etc/resolv.conf), or the region's name against \
                         {OVERRIDES}"
                    ))
                }
            }
        })
        .collect()
}
