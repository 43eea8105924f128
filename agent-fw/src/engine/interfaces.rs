//! The interfaces that a policy names. An interface is a thing, not a name: one that has been renamed
//! since it was given a program is still the policy's, and is told from one that has gone.

use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::system::{file, namespace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What each name stood for when its interface was last given a program.
const IDENTITIES: &str = "/var/lib/agent-fw/interfaces.json";

/// The interfaces of a policy that are there, and the names of those that are not.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Found {
    /// Those that are there.
    pub present: Vec<Named>,
    /// The names of the others.
    pub missing: Vec<String>,
}

/// An interface, with the name by which a policy knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The policy's name for it.
    pub name: String,
    /// The interface.
    pub interface: Interface,
}

impl Named {
    /// Whether the interface had the policy's name, and has another now.
    pub fn is_renamed(&self) -> bool {
        !goes_by(&self.interface, &self.name)
    }
}

impl Found {
    /// The interfaces, each once.
    pub fn interfaces(&self) -> Vec<Interface> {
        let mut interfaces: Vec<Interface> = Vec::new();
        for Named { interface, .. } in &self.present {
            if interfaces.iter().all(|known| known.index != interface.index) {
                interfaces.push(interface.clone());
            }
        }
        interfaces
    }

    /// Whether these are the same interfaces, whatever has become of each.
    pub fn is_same(&self, other: &Self) -> bool {
        let present = |found: &Self| -> Vec<(String, u32)> {
            found.present.iter().map(|named| (named.name.clone(), named.interface.index)).collect()
        };
        present(self) == present(other) && self.missing == other.missing
    }
}

/// What tells an interface from others, whatever its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Identity {
    /// Its index, which means something until the next boot, in one network namespace.
    index: u32,
    /// That boot.
    boot: String,
    /// That namespace.
    namespace: u64,
    /// The MAC address that its device was made with.
    permanent_mac: Option<[u8; 6]>,
}

type Identities = BTreeMap<String, Identity>;

/// Finds the interfaces of these names, by what they were when they were given a program, and by
/// name. Without any name, every physical one that is up.
pub fn find(names: &[String]) -> anyhow::Result<Found> {
    Ok(resolve(names, &link::list()?, &identities(), &boot(), namespace::current()?))
}

/// Finds the interfaces that have these names now.
pub fn named(names: &[String]) -> anyhow::Result<Found> {
    Ok(resolve(names, &link::list()?, &Identities::new(), "", 0))
}

/// By what udev knows an interface for the policy's: the policy's names, the MAC addresses of the devices
/// that these stood for, and their indexes, which are all that is left of one that goes.
pub fn marks(names: &[String]) -> anyhow::Result<Vec<String>> {
    Ok(marks_of(names, &identities(), &boot(), namespace::current()?))
}

fn marks_of(names: &[String], known: &Identities, boot: &str, namespace: u64) -> Vec<String> {
    let known = names.iter().filter_map(|name| known.get(name));
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let of_one = |identity: &Identity| {
        let is_now = identity.boot == boot && identity.namespace == namespace;
        let index = is_now.then(|| format!("ifindex-{}", identity.index));
        identity.permanent_mac.map(text).into_iter().chain(index).collect::<Vec<_>>()
    };
    names.iter().cloned().chain(known.flat_map(of_one)).collect()
}

/// Keeps what the policy's names stand for. Those that are missing keep what is known of them.
pub fn remember(found: &Found) -> anyhow::Result<()> {
    let (boot, namespace) = (boot(), namespace::current()?);
    let known = identities();
    let mut all: Identities = BTreeMap::new();
    for name in &found.missing {
        all.extend(known.get(name).map(|identity| (name.clone(), identity.clone())));
    }
    for Named { name, interface } in &found.present {
        let identity = Identity {
            index: interface.index,
            boot: boot.clone(),
            namespace,
            permanent_mac: interface.permanent_mac,
        };
        // A namesake that has come later does not take the place of the one that had the name.
        all.entry(name.clone()).or_insert(identity);
    }
    if all == known {
        return Ok(());
    }
    if all.is_empty() {
        return forget();
    }
    file::write(Path::new(IDENTITIES), &serde_json::to_string(&all)?)
}

/// Forgets what names stood for.
pub fn forget() -> anyhow::Result<()> {
    file::remove(Path::new(IDENTITIES))
}

/// What cannot be read is as if no interface had been given a program.
fn identities() -> Identities {
    let text = file::read(Path::new(IDENTITIES)).ok().flatten();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn resolve(
    names: &[String],
    all: &[Interface],
    known: &Identities,
    boot: &str,
    namespace: u64,
) -> Found {
    if names.is_empty() {
        let physical = all.iter().filter(|interface| interface.is_up && interface.is_physical());
        let by_its_name = |interface: &Interface| Named {
            name: interface.name.clone(),
            interface: interface.clone(),
        };
        return Found { present: physical.map(by_its_name).collect(), missing: Vec::new() };
    }
    let mut found = Found::default();
    for name in names {
        let identity = known.get(name);
        let same = identity.and_then(|identity| is_now(identity, all, boot, namespace));
        // A namesake that has come later gets a program, too: the policy names it.
        let namesake = all.iter().find(|interface| goes_by(interface, name));
        let both = same.into_iter().chain(namesake.filter(|it| Some(*it) != same));
        let before = found.present.len();
        let as_this = |it: &Interface| Named { name: name.clone(), interface: it.clone() };
        found.present.extend(both.map(as_this));
        if found.present.len() == before {
            found.missing.push(name.clone());
        }
    }
    found
}

/// The interface that was this one.
fn is_now<'a>(
    identity: &Identity,
    all: &'a [Interface],
    boot: &str,
    namespace: u64,
) -> Option<&'a Interface> {
    if identity.boot == boot && identity.namespace == namespace {
        // No other interface of this namespace has had its number.
        let same = all.iter().find(|interface| interface.index == identity.index);
        if same.is_some() {
            return same;
        }
    }
    // One that has come back has another.
    let mac = identity.permanent_mac?;
    let mut same = all.iter().filter(|interface| interface.permanent_mac == Some(mac));
    same.next().filter(|_| same.next().is_none())
}

/// Whether the interface has this name, or another of its names is this; `v0@if2` is how `ip` prints
/// an interface with the one below it.
fn goes_by(interface: &Interface, name: &str) -> bool {
    let is = |name: &str| interface.name == name || interface.altnames.iter().any(|n| n == name);
    is(name) || name.split_once('@').is_some_and(|(name, _)| is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> Interface {
        let mut interface = Interface::default();
        (interface.index, interface.name) = (index, name.to_owned());
        interface
    }

    fn identity(index: u32, boot: &str, mac: Option<u8>) -> Identity {
        let permanent_mac = mac.map(|last| [2, 0, 0, 0, 0, last]);
        Identity { index, boot: boot.to_owned(), namespace: 1, permanent_mac }
    }

    fn names(found: &Found) -> Vec<&str> {
        found.present.iter().map(|named| named.interface.name.as_str()).collect()
    }

    #[test]
    fn a_renamed_interface_is_found_and_told_from_one_that_has_gone() {
        let known = BTreeMap::from([
            ("v0".to_owned(), identity(2, "now", None)),
            ("v1".to_owned(), identity(3, "now", None)),
        ]);
        let all = [interface(1, "lo"), interface(2, "lan0")];
        let wanted = ["v0".to_owned(), "v1".to_owned()];
        let found = resolve(&wanted, &all, &known, "now", 1);
        assert_eq!(names(&found), ["lan0"]);
        assert!(found.present[0].is_renamed());
        assert_eq!(found.missing, ["v1"]);
        // One that was taken out comes back with another number, and perhaps another name.
        let mut back = interface(9, "lan1");
        back.permanent_mac = identity(3, "now", Some(7)).permanent_mac;
        let known_by_mac = BTreeMap::from([("v1".to_owned(), identity(3, "now", Some(7)))]);
        let found = resolve(&wanted[1..], &[back], &known_by_mac, "now", 1);
        assert_eq!(names(&found), ["lan1"]);
        // Numbers mean nothing after a boot, nor in another namespace.
        assert_eq!(resolve(&wanted, &all, &known, "later", 1).missing, wanted);
        assert_eq!(resolve(&wanted, &all, &known, "now", 2).missing, wanted);
    }

    #[test]
    fn after_a_boot_a_device_is_known_by_its_own_mac_address() {
        let known = BTreeMap::from([("eth0".to_owned(), identity(2, "before", Some(7)))]);
        let mut card = interface(5, "enp0s3");
        card.permanent_mac = Some([2, 0, 0, 0, 0, 7]);
        let wanted = ["eth0".to_owned()];
        assert_eq!(names(&resolve(&wanted, &[card.clone()], &known, "now", 1)), ["enp0s3"]);
        // A namesake is guarded besides.
        let other = interface(6, "eth0");
        let found = resolve(&wanted, &[card.clone(), other], &known, "now", 1);
        assert_eq!(names(&found), ["enp0s3", "eth0"]);
        let mut twin = card.clone();
        twin.index = 8;
        let twins = [card, twin];
        assert_eq!(resolve(&wanted, &twins, &known, "now", 1).missing, wanted);
    }

    #[test]
    fn udev_knows_an_interface_by_its_name_its_own_mac_address_and_its_index() {
        let known = BTreeMap::from([("v0".to_owned(), identity(2, "now", Some(7)))]);
        let marks = |boot, namespace| {
            marks_of(&["v0".to_owned(), "v1".to_owned()], &known, boot, namespace)
        };
        assert_eq!(marks("now", 1), ["v0", "v1", "02:00:00:00:00:07", "ifindex-2"]);
        // Another interface has the number now.
        assert_eq!(marks("later", 1), ["v0", "v1", "02:00:00:00:00:07"]);
        assert_eq!(marks("now", 2), ["v0", "v1", "02:00:00:00:00:07"]);
    }

    #[test]
    fn other_names_and_what_ip_prints_are_names_too() {
        let mut card = interface(2, "eth0");
        card.altnames = vec!["enp0s3".to_owned()];
        let all = [card, interface(3, "v0"), interface(4, "a@b")];
        for (name, expected) in [("enp0s3", "eth0"), ("v0@if2", "v0"), ("a@b", "a@b")] {
            let found = named_in(&[name.to_owned()], &all);
            assert_eq!(names(&found), [expected]);
            assert!(!found.present[0].is_renamed(), "{name}");
        }
    }

    fn named_in(names: &[String], all: &[Interface]) -> Found {
        resolve(names, all, &Identities::new(), "", 0)
    }
}
