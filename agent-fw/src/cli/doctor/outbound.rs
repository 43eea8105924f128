//! What this host's own rules let out, asked of the kernel. Nothing is sent.

use super::check::{Check, Health};
use crate::cli::asking::{self, PacketsSent};
use crate::cli::own_packets::OwnPackets;
use crate::cli::path_report;
use crate::model::Port;
use crate::trace::{Conclusion, Outbound, PacketTrace};

/// What this host's own rules do with what the agent sends to the outside.
pub(super) fn outbound(sent: &mut PacketsSent) -> [Check; 2] {
    let https = "the agent needs TCP 443 to every address: the Smart Protection Network's \
                 addresses are not published";
    let names = "the agent finds its manager by name";
    [
        gets_out("outbound TCP 443", https, sent, || Outbound::tcp(Port(443))),
        gets_out("outbound UDP 53 (DNS)", names, sent, || Outbound::udp(Port(53))),
    ]
}

fn gets_out(
    name: &'static str,
    why: &'static str,
    sent: &mut PacketsSent,
    ask: impl FnOnce() -> anyhow::Result<PacketTrace>,
) -> Check {
    let mut own = OwnPackets::begin();
    let asked = ask();
    own.sent_besides(asked.as_ref().map_or(0, |road| road.sent));
    drop(own);
    if let Ok(road) = &asked {
        sent.add_outgoing(road);
    }
    match asked {
        Err(error) => Check::new(name, why, Health::Note, asking::why_not(&error)),
        Ok(road) if road.conclusion == Conclusion::Reaches => {
            Check::new(name, why, Health::Good, "this host's own rules let it out")
        }
        Ok(road) if matches!(road.conclusion, Conclusion::NotKnown(_)) => {
            Check::new(name, why, Health::Note, path_report::conclusion(&road))
        }
        Ok(road) => Check::new(name, why, Health::Bad, path_report::conclusion(&road))
            .advise("let it out in that firewall, to every address"),
    }
}
