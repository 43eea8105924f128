//! Facts of interfaces that matter to XDP.

use super::check::{Check, Health};
use crate::cli::outcome::Result;
use crate::configuration::Configuration;
use crate::engine::interfaces::Found;
use crate::engine::kernel_state::Remedy;
use crate::engine::plan::interfaces_of;
use crate::netlink::link::Interface;
use crate::netlink::{ethtool, link};
use crate::nft::Nftables;
use crate::trace;
use std::collections::BTreeSet;
use std::path::Path;

const NAME: &str = "an interface";
const WHY: &str = "the XDP program must be on every interface by which the agent is reached; many \
                   drivers refuse it where packets are joined (LRO) or larger than a page";
/// What drivers call it when they join packets before XDP could see them.
const JOINING: [&str; 2] = ["rx-lro", "rx-gro-hw"];

/// One check for each physical interface, and for each that the policy names.
pub(super) fn interfaces(configuration: Option<&Configuration>) -> Result<Vec<Check>> {
    let wanted = configuration.filter(|known| known.backend.has_programs());
    let found = wanted.map_or_else(|| Ok(Found::default()), interfaces_of)?;
    let stands_in = Nftables::open()?.has_tables()?;
    let missing = found.missing.iter().map(|name| {
        let seen = format!("{name} is not there; the policy names it");
        if stands_in {
            let seen = format!("{seen}, and the table holds until it comes");
            return Check::new(NAME, WHY, Health::Note, seen);
        }
        Check::new(NAME, WHY, Health::Bad, seen).advise(Remedy::ApplyAtBoot.to_string())
    });
    let named = found.interfaces();
    let is_named = |it: &Interface| named.iter().any(|known| known.index == it.index);
    let all = link::list()?;
    let shown = all.iter().filter(|interface| interface.is_physical() || is_named(interface));
    Ok(missing.chain(shown.map(|interface| check(interface, is_named(interface)))).collect())
}

fn check(interface: &Interface, is_named: bool) -> Check {
    let name = &interface.name;
    let joining = ethtool::features(interface.index).map(|on| joining(&on));
    let seen = format!(
        "{name}: {}, {}, MTU {}, {} receive queues, {}, {}, {}",
        if interface.is_up { "up" } else { "down" },
        driver(name).unwrap_or_else(|| "no driver of its own".to_owned()),
        interface.mtu,
        receive_queues(name),
        match &joining {
            Ok(on) if on.is_empty() => "LRO off".to_owned(),
            Ok(on) => format!("LRO on ({})", on.join(", ")),
            Err(_) => "LRO not known".to_owned(),
        },
        interface.xdp.map_or_else(
            || "no XDP program".to_owned(),
            |xdp| format!("{} XDP program {}", xdp.place, xdp.program)
        ),
        match trace::tc_programs(interface.index) {
            found if found.is_empty() => "no tc program".to_owned(),
            found => found.join(", "),
        },
    );
    let check = |health| Check::new(NAME, WHY, health, seen.clone());
    match joining {
        _ if is_named && !interface.is_up => check(Health::Note),
        Ok(on) if is_named && !on.is_empty() => {
            let off: Vec<String> = on.iter().map(|feature| format!("{feature} off")).collect();
            check(Health::Note).advise(format!("ethtool -K {name} {}", off.join(" ")))
        }
        _ => check(Health::Good),
    }
}

fn joining(on: &BTreeSet<String>) -> Vec<&'static str> {
    JOINING.into_iter().filter(|feature| on.contains(*feature)).collect()
}

fn driver(name: &str) -> Option<String> {
    let driver = std::fs::read_link(directory(name).join("device/driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

fn receive_queues(name: &str) -> usize {
    std::fs::read_dir(directory(name).join("queues")).map_or(0, |entries| {
        let is_rx = |name: std::ffi::OsString| name.to_string_lossy().starts_with("rx-");
        entries.flatten().filter(|entry| is_rx(entry.file_name())).count()
    })
}

fn directory(name: &str) -> std::path::PathBuf {
    Path::new("/sys/class/net").join(name)
}
