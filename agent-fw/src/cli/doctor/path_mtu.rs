//! Whether a router's word that a packet of the agent's was too large gets in, asked of the kernel.

use super::check::{Check, Health};
use crate::cli::asking::{self, PacketsSent};
use crate::cli::own_packets::OwnPackets;
use crate::cli::{path_report, sample};
use crate::configuration::Compiled;
use crate::model::Port;
use crate::trace::{Conclusion, PathMtu, ProbeRequest, ResolvedProbe};
use std::net::IpAddr;

/// Public addresses, where the policy admits none that tells.
const OTHERS: [&str; 2] = ["9.9.9.9", "2620:fe::9"];
const NAMES: [&str; 2] = ["ICMP for the path's MTU", "ICMPv6 for the path's MTU"];

/// One check for each version of IP by which this host has a way to outside.
pub(super) fn path_mtu(
    compiled: Option<&Compiled>,
    port: Port,
    sent: &mut PacketsSent,
) -> Vec<Check> {
    let admitted = compiled.map(|compiled| sample::few(&compiled.lowered.policy, 1));
    let admitted: Vec<IpAddr> = admitted.iter().flatten().map(|sample| sample.source).collect();
    let others = OTHERS.iter().filter_map(|text| text.parse().ok());
    let all: Vec<IpAddr> = admitted.into_iter().chain(others).collect();
    let cases = [true, false].into_iter().filter_map(|is_v4| {
        all.iter().filter(|remote| remote.is_ipv4() == is_v4).find_map(|remote| {
            let question = ProbeRequest {
                source: *remote,
                mac: None,
                destination: None,
                port,
                interface: None,
            };
            ResolvedProbe::of(&question).ok()
        })
    });
    cases.map(|case| check(&case, sent)).collect()
}

fn check(case: &ResolvedProbe, sent: &mut PacketsSent) -> Check {
    let is_v4 = case.syn.source.is_ipv4();
    let (name, message) = if is_v4 {
        (NAMES[0], "ICMP type 3 code 4 (fragmentation needed)")
    } else {
        (NAMES[1], "ICMPv6 type 2 (packet too big)")
    };
    let why = "where a link on the way carries less, large packets are lost and connections hang, \
               unless routers may say so";
    let mut own = OwnPackets::begin();
    let asked = PathMtu::ask(case);
    own.sent_besides(asked.as_ref().map_or(0, |found| found.road.sent));
    drop(own);
    let found = match asked {
        Ok(found) => found,
        Err(error) => {
            return Check::new(name, why, Health::Note, asking::why_not(&error));
        }
    };
    sent.add_incoming(&found.road);
    let about = match &found.untracked {
        None => "about a connection with the agent".to_owned(),
        Some(why) => format!(
            "about a connection that is not tracked, since the kernel could not be told of one \
             ({why})"
        ),
    };
    let seen = format!(
        "{message} from {}, by {}, {about}: {}",
        found.router,
        case.interface.name,
        if found.road.conclusion == Conclusion::Reaches {
            "this host's own rules let it in".to_owned()
        } else {
            path_report::conclusion(&found.road)
        }
    );
    let health = match (&found.road.conclusion, &found.untracked) {
        (Conclusion::Reaches, _) => Health::Good,
        (Conclusion::NotKnown(_), _) | (_, Some(_)) => Health::Note,
        (_, None) => Health::Bad,
    };
    let check = Check::new(name, why, health, seen);
    if health == Health::Good {
        return check;
    }
    check.advise("let it in, from every address: with `ct state related`, or by its type and code")
}
