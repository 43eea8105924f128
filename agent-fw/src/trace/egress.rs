//! What chains at the exits of devices do with an answer, and those of bridges: it is sent out once more,
//! as a frame, and caught behind the last of them. Nothing leaves the host.

use super::base_chains::Base;
use super::entrance::Entrance;
use super::events::ChainRef;
use super::follow::{Pinned, Token, follow};
use super::path::{Conclusion, Observed, PacketTrace};
use super::probe_rule::Protocol;
use super::syn::Syn;
use super::trace_table::TraceTable;
use crate::model::MacAddr;
use crate::netlink::frame::FrameSocket;
use crate::netlink::link::{self, Interface};
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, number, text};
use anyhow::Context as _;
use std::collections::BTreeMap;

/// `NFPROTO_NETDEV`, `NFPROTO_BRIDGE`.
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;

/// A frame that is about to leave.
pub(super) struct Frame<'a> {
    /// The packet that it answers.
    pub(super) syn: &'a Syn,
    /// By which it is known.
    pub(super) number: u32,
    /// Its mark, when it has come that far.
    pub(super) mark: u32,
    pub(super) from: MacAddr,
    pub(super) to: MacAddr,
    pub(super) by: &'a Interface,
}

/// The frame's road; nothing, where no chain is on it.
pub(super) fn ask(
    frame: &Frame<'_>,
    listener: &mut Connection,
    bases: &BTreeMap<ChainRef, Base>,
    connection: &mut Connection,
) -> anyhow::Result<Option<PacketTrace>> {
    let is_one =
        |(place, base): (&ChainRef, &Base)| place.family == BRIDGE || base.hook == "egress";
    if !bases.iter().any(is_one) {
        return Ok(None);
    }
    // It leaves by the devices by which such a one comes in.
    let exit = Entrance::of(frame.by, frame.to, &link::list()?);
    let chains = connection.dump(Kind::GetChain, 0, &[])?;
    if !chains.iter().any(|chain| is_on_the_way(chain, &exit)) {
        return Ok(None);
    }
    let not_known = |why: String| Ok(Some(PacketTrace::concluded(Conclusion::NotKnown(why))));
    let is_tagged = |device: &Interface| matches!(device.kind(), Some("vlan" | "bond"));
    if exit.missing.is_some() || exit.devices.iter().any(is_tagged) {
        let name = &frame.by.name;
        return not_known(format!("chains at the exits below {name} cannot be asked"));
    }
    let made = |number| {
        let made = frame.syn.answer_frame(number, frame.from, frame.to);
        made.context("the addresses are of two versions of IP")
    };
    let lowest = exit.lowest().context("there is no interface")?;
    let snare = TraceTable::set_exit(&frame.by.name, &lowest.name, Protocol::Tcp, frame.number);
    let _snare = match snare {
        Ok(snare) => snare,
        Err(error) => return not_known(format!("chains at exits cannot be asked ({error:#})")),
    };
    let first = frame.syn.port.0.to_be_bytes();
    let token = Token { protocol: Protocol::Tcp, first, number: frame.number };
    let (packet, after) = (made(frame.number)?, made(frame.number.wrapping_add(1))?);
    let socket = FrameSocket::open(frame.mark).context("cannot open a socket for frames")?;
    let _here = Pinned::to_this_cpu();
    let sent = [packet, after].iter().try_for_each(|made| socket.send(frame.by.index, made));
    let events = follow(listener, token)?;
    // A chain that drops it is told by an error, too.
    if events.is_empty() {
        let why = sent.err().map_or_else(String::new, |error| format!(" ({error})"));
        return not_known(format!(
            "it could not be followed at the exit of {}{why}",
            frame.by.name
        ));
    }
    Ok(Some(PacketTrace::of(Observed::leaving(events), bases, connection)))
}

/// Whether a chain is one that a frame meets which leaves by these devices.
fn is_on_the_way(chain: &Message, exit: &Entrance) -> bool {
    /// Numbers of linux/netfilter/nf_tables.h.
    const HOOK: u16 = 4;
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    let Some(about) = chain.find(HOOK) else { return false };
    let several = attributes(find(about, DEVICES).unwrap_or_default()).map(|(_, name)| name);
    let mut names = find(about, DEVICE).into_iter().chain(several).map(text);
    match (chain.family, find(about, 1).and_then(number)) {
        // `NF_NETDEV_EGRESS`.
        (NETDEV, Some(1)) => {
            names.any(|name| exit.devices.iter().any(|device| device.name == name))
        }
        // `NF_BR_LOCAL_OUT`, `NF_BR_POST_ROUTING`.
        (BRIDGE, Some(3 | 4)) => exit.devices.iter().any(|device| device.kind() == Some("bridge")),
        _ => false,
    }
}
