//! The decision: who is admitted, who is refused, and every reason to do neither.

use core::fmt;

use crate::address::{Address, V4, V6};
use crate::config::Config;
use crate::datagram::{Datagram, Port};
use crate::ethernet::{self, Mac};
use crate::fast_path::{Glance, glance};
use crate::label::Label;
use crate::packet::Packet;
use crate::table::Tables;
use crate::{ipv4, ipv6, tcp};

/// What becomes of a frame to the agent's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its source is listed, under this label: it passes.
    Admitted(Label),
    /// Its source is not listed: it is dropped.
    Refused,
    /// Its port cannot be read, its source is not listed or cannot be read either, and there is no
    /// gate: it is dropped.
    RefusedHiddenPort,
    /// Its source is not listed, and others are left to the rest of the host: it passes.
    LeftToOthers,
}

/// Why a frame was not decided on. It passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PassReason {
    /// It carries neither IPv4 nor IPv6.
    NotIp,
    /// It carries no TCP.
    NotTcp,
    /// It is for another port than the agent's.
    OtherPort,
    /// It is a fragment without a port; without the first one, nothing comes of it.
    LaterFragment,
    /// It is for another MAC address than this host's.
    OtherHost,
    /// It may be for another host: by this host's routes, or a virtual network.
    NotForThisHost,
    /// It ends inside a header.
    Truncated,
    /// Its IP header contradicts itself.
    MalformedIp,
    /// It has more VLAN tags than 16.
    TooManyTags,
    /// It has more IPv6 extension headers than eight.
    TooManyExtensions,
    /// It is a first fragment too short for the port.
    ShortFirstFragment,
    /// A table lacks what another one refers to: a fault of agent-fw's.
    TableFault,
}

impl PassReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::NotIp,
        Self::NotTcp,
        Self::OtherPort,
        Self::LaterFragment,
        Self::OtherHost,
        Self::NotForThisHost,
        Self::Truncated,
        Self::MalformedIp,
        Self::TooManyTags,
        Self::TooManyExtensions,
        Self::ShortFirstFragment,
        Self::TableFault,
    ];

    /// Whether the frame is none of the agent's, as most of a host's are.
    #[inline(always)]
    #[must_use]
    pub const fn is_unconcerned(self) -> bool {
        matches!(self, Self::NotIp | Self::NotTcp | Self::OtherPort)
    }
}

impl fmt::Display for PassReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotIp => "not IP",
            Self::NotTcp => "not TCP",
            Self::OtherPort => "another port",
            Self::LaterFragment => "a later fragment",
            Self::OtherHost => "to another host's MAC address",
            Self::NotForThisHost => "perhaps not for this host",
            Self::Truncated => "truncated",
            Self::MalformedIp => "malformed IP header",
            Self::TooManyTags => "more than 16 VLAN tags",
            Self::TooManyExtensions => "more than eight IPv6 extension headers",
            Self::ShortFirstFragment => "a first fragment too short for the port",
            Self::TableFault => "a fault in the tables",
        })
    }
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient<A> {
    /// The MAC address that it is sent to.
    pub mac: Mac,
    /// The IP address that it comes from.
    pub source: A,
    /// The IP address that it is sent to.
    pub destination: A,
}

/// The host that a frame has come to.
pub trait Host {
    /// Takes note of a frame that is admitted under this label.
    fn admit(&self, label: Label);

    /// Asks that a frame be dropped, as `verdict` says. Where a gate stands behind, this fails, with
    /// the reason, for what may not be for this host.
    fn refuse<A: Address>(
        &self,
        recipient: &Recipient<A>,
        verdict: Verdict,
    ) -> Result<(), PassReason>;

    /// Asks that a frame be dropped whose headers cannot be read; only where there is no gate.
    fn refuse_unread(&self);

    /// Asks that the frame, a plain one, be dropped, if it is known that frames to its destination are
    /// for this host. False where it takes [`Host::refuse`].
    fn refuse_known<A: Plain>(&self) -> bool;
}

/// Decides on a frame as [`try_decide`] does, if it is as nearly all are; `None` for others.
#[inline(always)]
pub fn decide_at_a_glance(
    packet: &(impl Packet + ?Sized),
    config: &Config,
    tables: &impl Tables,
    host: &impl Host,
) -> Option<Result<Verdict, PassReason>> {
    match glance(packet, config) {
        Glance::V4 => decide_plain::<V4>(packet, config, tables, host),
        Glance::V6 => decide_plain::<V6>(packet, config, tables, host),
        other => other.reason().map(Err),
    }
}

/// A version of IP, by its addresses, of a plain datagram: one right behind Ethernet's header, with
/// TCP right behind its own.
pub trait Plain: Address {
    /// Where in the frame TCP starts.
    const PAYLOAD_AT: usize;

    /// The datagram's source and destination.
    fn addresses(packet: &(impl Packet + ?Sized)) -> Option<[Self; 2]>;

    /// The TCP port that it is for.
    #[inline(always)]
    fn port(packet: &(impl Packet + ?Sized)) -> Option<u16> {
        packet.load_near(Self::PAYLOAD_AT).map(tcp::Ports::destination)
    }
}

/// Decides on a frame.
#[inline(always)]
pub fn try_decide(
    packet: &(impl Packet + ?Sized),
    config: &Config,
    tables: &impl Tables,
    host: &impl Host,
) -> Result<Verdict, PassReason> {
    let ethernet::Payload { kind, at, is_virtual } = match ethernet::payload(packet) {
        // The kernel strips them all. Only who wants to slip past sends so many.
        Err(PassReason::TooManyTags) if !config.gate() && !config.otherwise_continue() => {
            host.refuse_unread();
            return Ok(Verdict::RefusedHiddenPort);
        }
        found => found?,
    };
    let frame = Frame { packet, is_virtual };
    match kind {
        ethernet::IPV4 => decide_datagram(&frame, config, tables, host, ipv4::parse(packet, at)?),
        ethernet::IPV6 => decide_datagram(&frame, config, tables, host, ipv6::parse(packet, at)?),
        _ => Err(PassReason::NotIp),
    }
}

/// A frame, and what its tags tell.
struct Frame<'a, P: ?Sized> {
    packet: &'a P,
    is_virtual: bool,
}

/// Decides on a plain datagram to a port between the agent's lowest and highest.
#[inline(always)]
pub(crate) fn decide_plain<A: Plain>(
    packet: &(impl Packet + ?Sized),
    config: &Config,
    tables: &impl Tables,
    host: &impl Host,
) -> Option<Result<Verdict, PassReason>> {
    if !config.plain() {
        return None;
    }
    if config.port_map() && !is_on_map(config, tables, A::port(packet)?).ok()? {
        return Some(Err(PassReason::OtherPort));
    }
    let [source, _] = A::addresses(packet)?;
    match source.label(config, tables).ok()? {
        Some(label) => {
            host.admit(label);
            Some(Ok(Verdict::Admitted(label)))
        }
        None => host.refuse_known::<A>().then_some(Ok(Verdict::Refused)),
    }
}

#[inline(always)]
fn decide_datagram<A: Address, P: Packet + ?Sized>(
    frame: &Frame<'_, P>,
    config: &Config,
    tables: &impl Tables,
    host: &impl Host,
    datagram: Datagram<A>,
) -> Result<Verdict, PassReason> {
    let Datagram { source, destination, port } = datagram;
    let refusal = concern(config, tables, port)?;
    decide_source(frame, config, tables, host, [source, destination], refusal)
}

/// Decides on a frame that concerns the agent.
#[inline(always)]
fn decide_source<A: Address, P: Packet + ?Sized>(
    &Frame { packet, is_virtual }: &Frame<'_, P>,
    config: &Config,
    tables: &impl Tables,
    host: &impl Host,
    [source, destination]: [A; 2],
    refusal: Verdict,
) -> Result<Verdict, PassReason> {
    if let Some(label) = source.label(config, tables)?
        && admits_mac(packet, config, tables, label)?
    {
        host.admit(label);
        return Ok(Verdict::Admitted(label));
    }
    if config.otherwise_continue() {
        return Ok(Verdict::LeftToOthers);
    }
    // Another interface is to receive it, whose routes and neighbours are not asked here.
    if is_virtual && config.gate() {
        return Err(PassReason::NotForThisHost);
    }
    let recipient = Recipient { mac: ethernet::destination(packet)?, source, destination };
    host.refuse(&recipient, refusal)?;
    Ok(refusal)
}

/// How a packet to this port is refused if it must be, where that is for this program to say.
#[inline(always)]
fn concern(
    config: &Config,
    tables: &impl Tables,
    port: Result<Port, PassReason>,
) -> Result<Verdict, PassReason> {
    match port {
        Ok(port) if is_agents(config, tables, port.number)? => {
            if port.is_inside {
                Ok(Verdict::Refused)
            } else {
                Err(PassReason::Truncated)
            }
        }
        Ok(_) => Err(PassReason::OtherPort),
        // The kernel will find a port here. Only who wants to slip past hides it so: nobody's
        // mistake looks like this.
        Err(PassReason::ShortFirstFragment | PassReason::TooManyExtensions) if !config.gate() => {
            Ok(Verdict::RefusedHiddenPort)
        }
        Err(reason) => Err(reason),
    }
}

#[inline(always)]
pub(crate) fn is_agents(
    config: &Config,
    tables: &impl Tables,
    port: u16,
) -> Result<bool, PassReason> {
    if config.span().has(port) { is_on_map(config, tables, port) } else { Ok(false) }
}

/// Whether a port between the agent's lowest and highest is one of the agent's.
#[inline(always)]
fn is_on_map(config: &Config, tables: &impl Tables, port: u16) -> Result<bool, PassReason> {
    if !config.port_map() {
        return Ok(true);
    }
    let ports = tables.ports(u32::from(port / 64)).ok_or(PassReason::TableFault)?;
    Ok(ports >> (port % 64) & 1 == 1)
}

/// Whether the label's admission takes the MAC address that the frame comes from.
#[inline(always)]
fn admits_mac(
    packet: &(impl Packet + ?Sized),
    config: &Config,
    tables: &impl Tables,
    label: Label,
) -> Result<bool, PassReason> {
    if !config.macs() {
        return Ok(true);
    }
    let set = tables.mac_set(label).ok_or(PassReason::TableFault)?;
    Ok(set == 0 || tables.has_mac(mac_key(set, ethernet::source(packet)?)))
}

/// The key under which the map of MAC addresses has an address of a set. Sets count from 1.
#[inline(always)]
#[must_use]
pub const fn mac_key(set: u32, mac: Mac) -> u64 {
    (set as u64) << 48 | mac.bits()
}

impl<A: Address> Recipient<A> {
    /// The source, as an address of IPv6.
    #[inline(always)]
    pub fn source_v6(&self) -> V6 {
        self.source.to_v6()
    }

    /// The destination, as an address of IPv6.
    #[inline(always)]
    pub fn destination_v6(&self) -> V6 {
        self.destination.to_v6()
    }
}
