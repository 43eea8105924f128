//! Exceptions in ufw: rules before all others, which ufw keeps by itself.

use super::sources::Sources;
use super::step::{Presence, Step};
use crate::host_firewall::command::Call;
use crate::model::Port;

pub(super) fn steps(sources: &Sources, port: Port) -> Vec<Step> {
    if *sources == Sources::Everyone {
        let shown = format!("ufw allow {port}/tcp");
        return vec![step(&format!("allow {port}/tcp"), shown)];
    }
    let both = [true, false].into_iter().flat_map(|is_v4| sources.addresses(is_v4));
    both.map(|address| {
        let rule = format!("allow proto tcp from {address} to any port {port}");
        step(&rule, format!("ufw allow from {address} to any port {port} proto tcp"))
    })
    .collect()
}

/// `shown` is how `ufw show added` writes it.
fn step(rule: &str, shown: String) -> Step {
    let call = |verb: &str, comment: &str| {
        Call::new(
            ["ufw", verb].into_iter().chain(rule.split(' ')).chain(comment.split_whitespace()),
        )
    };
    Step {
        what: format!("a rule of ufw: {rule}"),
        presence: Presence::Output(Call::new(["ufw", "show", "added"]), shown),
        is_named: false,
        make: vec![call("prepend", "comment agent-fw")],
        take_back: vec![call("delete", "")],
    }
}
