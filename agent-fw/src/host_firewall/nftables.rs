//! Exceptions in a ruleset of nft: a rule for each kind of source, at the beginning of the base
//! chain that drops. They are known again by their comments.
//!
//! The file that the ruleset is loaded from is not touched: it is its owner's, and may be written
//! by another program. When the ruleset has been loaded again, `agent-fw apply` puts them back.

use super::sources::Sources;
use super::step::{Presence, Step};
use crate::host_firewall::command::Call;
use crate::model::Port;
use crate::trace::ChainRef;

/// Sources up to which a rule fits a command line; more are read from standard input.
const FEW: usize = 64;
/// Families of tables: inet, ip, netdev, ip6.
const V4: [u8; 3] = [1, 2, 5];
const V6: [u8; 3] = [1, 10, 5];

pub(super) fn steps(base: &ChainRef, sources: &Sources, port: Port) -> Vec<Step> {
    if *sources == Sources::Everyone {
        return vec![step(base, "", port, "agent-fw")];
    }
    let v4 = sources.addresses(true);
    let v6 = sources.addresses(false);
    let macs: Vec<String> = sources.macs().iter().map(ToString::to_string).collect();
    [
        ("ip saddr", v4, V4.contains(&base.family), "agent-fw-v4"),
        ("ip6 saddr", v6, V6.contains(&base.family), "agent-fw-v6"),
        ("ether saddr", macs, true, "agent-fw-mac"),
    ]
    .into_iter()
    .filter(|(_, list, fits, _)| *fits && !list.is_empty())
    .map(|(field, list, _, comment)| {
        let set = match list.as_slice() {
            [one] => one.clone(),
            _ => format!("{{ {} }}", list.join(", ")),
        };
        step(base, &format!("{field} {set} "), port, comment)
    })
    .collect()
}

fn step(base: &ChainRef, whom: &str, port: Port, comment: &str) -> Step {
    let command = format!("insert rule {base} {whom}tcp dport {port} accept comment {comment}");
    let is_short = command.split(' ').count() <= FEW;
    let make = if is_short {
        Call::new(["nft"].into_iter().chain(command.split(' ')))
    } else {
        Call::new(["nft", "-f", "-"]).with_input(format!("{command}\n"))
    };
    Step {
        what: format!("the rule with the comment {comment} in chain {base}"),
        presence: Presence::Rule(base.clone(), comment.to_owned()),
        is_named: true,
        make: vec![make],
        // By its handle, which it has once it is there.
        take_back: Vec::new(),
    }
}
