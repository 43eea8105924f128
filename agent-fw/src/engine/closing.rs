//! The last resort: every port that some record names is closed to every source.

use super::apply::Substitute;
use super::host::{Host as _, ThisHost};
use crate::model::rule::AgentPolicy;
use crate::model::{DefaultAction, OriginMap, Policy, Port, Range, TableName};
use crate::nft::{Extras, Image, Nftables, Ruleset};
use crate::system;
use crate::system::file::{self, Trust};
use std::path::Path;

/// Puts tables in force by `put`; where the kernel refuses them, without their counters: before Linux
/// 6.2 these are a module of their own (`nft_objref`), which may be missing where nf_tables is not.
pub(super) fn or_without_counters<T, E>(
    tables: &[Image],
    mut put: impl FnMut(&[Image]) -> Result<T, E>,
) -> Result<T, E> {
    put(tables).or_else(|error| {
        let bare: Vec<Image> = tables.iter().cloned().map(Image::without_counters).collect();
        put(&bare).map_err(|_| error)
    })
}

/// Closes every port that some record names to every source. What is in force beyond these ports
/// stays.
pub(super) fn close(known: Option<Port>) -> anyhow::Result<Substitute> {
    let mut nftables = Nftables::open()?;
    let others = nftables.read_tables()?.into_iter();
    let others = others.filter(|live| live.image.name != TableName::Gate && live.strays.is_empty());
    let others: Vec<Image> = others.map(|live| live.image).collect();
    let mut ports = ports_to_close(known);
    if !others.is_empty() {
        // These say who reaches the relay's port.
        ports.truncate(1);
    }
    let tables: Vec<Image> = std::iter::once(closing_table(&ports)).chain(others).collect();
    let mut host = ThisHost::open()?;
    or_without_counters(&tables, |tables| host.replace_tables(tables))?;
    Ok(Substitute::Closed(ports))
}

/// The ports that a readable record names: the agent's, and the relay's where the policy says who
/// reaches it.
pub(super) fn ports_to_close(known: Option<Port>) -> Vec<Port> {
    let policy = policy_file();
    let port = policy.as_ref().and_then(port).or(known).unwrap_or(Port::AGENT);
    let relay = policy.as_ref().is_some_and(names_relay).then_some(Port::RELAY);
    std::iter::once(port).chain(relay.filter(|relay| *relay != port)).collect()
}

/// The table that closes these ports to every source.
pub(super) fn closing_table(ports: &[Port]) -> Image {
    let ports = ports.iter().copied().map(Range::single).collect();
    let policy = Policy::new(ports, DefaultAction::Drop, []);
    let nobody = AgentPolicy { policy, ledger: OriginMap::default() };
    Ruleset::compile(&nobody, Extras::default()).into_image()
}

/// A `policy.toml` of which something is faulty.
fn policy_file() -> Option<toml::Table> {
    let text = file::read_trusted(Path::new(system::POLICY), Trust::Anybody).ok()??;
    text.parse().ok()
}

/// The port in a `policy.toml` of which the rest is faulty.
fn port(policy: &toml::Table) -> Option<Port> {
    let port = policy.get("port")?.as_integer()?;
    u16::try_from(port).ok().filter(|port| *port != 0).map(Port)
}

/// Whether a `policy.toml` of which the rest is faulty says who reaches the relay's port.
fn names_relay(policy: &toml::Table) -> bool {
    policy.get("relay").is_some_and(|relay| relay.as_array().is_none_or(|list| !list.is_empty()))
}
