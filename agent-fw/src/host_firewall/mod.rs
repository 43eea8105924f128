//! Exceptions in the host's other firewalls, so that admitted sources get through: each made by
//! that firewall's own program, written down before it is made, and taken back exactly.

mod command;
mod detect;
mod firewalld;
mod iptables;
mod journal;
mod nftables;
mod sources;
mod step;
mod ufw;

pub use detect::Firewall;
pub use journal::{Exception, Remark, close_all};
pub use sources::Sources;
pub use step::Step;

use crate::model::{Policy, Port};
use anyhow::{Context as _, ensure};

/// What an exception is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The firewall that it is made in.
    pub firewall: Firewall,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// That firewall cannot tell the sources apart: it lets every one through to the port, and
    /// agent-fw alone keeps it closed to the others.
    pub is_wider: bool,
}

impl Plan {
    /// How this firewall lets all through that a policy admits. `firewall` says which zone it is
    /// about, where it has zones: see [`settle`].
    pub fn of(firewall: &Firewall, policy: &Policy, port: Port) -> anyhow::Result<Self> {
        let sources = Sources::of(policy);
        let fits = sources.count() <= most(firewall)
            && (*firewall != Firewall::Ufw || sources.macs().is_empty());
        if fits {
            return Ok(Self::for_sources(firewall, &sources, port));
        }
        ensure!(
            policy.drops_others(),
            "{firewall} cannot tell so many sources, or MAC addresses, from others, and the \
             policy leaves others to it (--otherwise continue): the exception would let in everyone"
        );
        Ok(Self { is_wider: true, ..Self::for_sources(firewall, &Sources::Everyone, port) })
    }

    /// Fails where the steps would do harm.
    fn check(&self) -> anyhow::Result<()> {
        if self.steps.iter().any(Step::reloads_firewalld) {
            firewalld::check_reload()?;
        }
        Ok(())
    }

    /// How it lets these sources through.
    pub fn for_sources(firewall: &Firewall, sources: &Sources, port: Port) -> Self {
        let steps = match firewall {
            Firewall::Firewalld(zone) => {
                let zone = zone.as_deref().unwrap_or("public");
                firewalld::steps(zone, sources, port)
            }
            Firewall::Ufw => ufw::steps(sources, port),
            Firewall::Iptables(at) => {
                let (table, chain) = (at.table.as_str(), at.chain.as_str());
                let is_v4 = at.family != 10;
                let place = iptables::IptablesChain { is_legacy: false, is_v4, table, chain };
                iptables::steps(&place, sources, port)
            }
            Firewall::IptablesLegacy { is_v4 } => {
                let (table, chain, is_v4) = ("filter", "INPUT", *is_v4);
                let place = iptables::IptablesChain { is_legacy: true, is_v4, table, chain };
                iptables::steps(&place, sources, port)
            }
            Firewall::Nftables(base) => nftables::steps(base, sources, port),
        };
        Self { firewall: firewall.clone(), steps, is_wider: false }
    }
}

/// Names the zone of firewalld that packets of an interface come to, where the rule that stops
/// them does not tell.
pub fn settle(firewall: Firewall, interface: &str) -> anyhow::Result<Firewall> {
    match firewall {
        Firewall::Firewalld(None) => {
            let zone = firewalld::zone_of(interface);
            Ok(Firewall::Firewalld(Some(zone.context("cannot tell firewalld's zone")?)))
        }
        firewall => Ok(firewall),
    }
}

/// Sources that a firewall is given one by one: it has no sets that last (iptables, ufw, whose
/// program takes a quarter of a second for each), or its sets are bounded.
fn most(firewall: &Firewall) -> usize {
    match firewall {
        Firewall::Firewalld(_) if !firewalld::has_sets() => firewalld::FEW,
        Firewall::Firewalld(_) => 100_000,
        Firewall::Ufw => 64,
        Firewall::Iptables(_) | Firewall::IptablesLegacy { .. } => 1024,
        Firewall::Nftables(_) => usize::MAX,
    }
}
