//! The packets that a rule means, as a set.

use super::criteria::{Criteria, Place, match_flags};
use super::packet::{ICMPV6, TCP};
use crate::model::packet_set::{Cube, ETHERNET, Field, PacketSet, only};
use crate::model::rule::Icmp;
use crate::model::{AddressSet, MacMatch, Range, RangeSet};

impl Criteria {
    /// The packets that are meant, whichever way they go.
    pub fn packets(&self) -> PacketSet {
        let Self { protocols, source, destination, tcp_flags, icmp, .. } = self;
        let cube = Cube::between(&source.addresses, &destination.addresses);
        let cubes = [cube].into_iter().chain(self.arp.then(Cube::arp));
        // Rules that name ports mean TCP or UDP, those that name messages mean ICMP: what the two
        // bytes are that both read.
        let messages = icmp.map_or_else(|| Field::SourcePort.all(), messages);
        let flags = tcp_flags.map(|wanted| numbers_of_bytes(|flags| match_flags(wanted, flags)));
        let meant: PacketSet = cubes
            .filter_map(|cube| {
                let cube = cube
                    .limited(Field::Protocol, &numbers_of_bytes(|n| protocols.contains(n)))?
                    .limited(Field::SourcePort, &messages)?
                    .limited(Field::SourcePort, &ports(source, Field::SourcePort))?
                    .limited(Field::DestinationPort, &ports(destination, Field::DestinationPort))?;
                let cube = with_macs(cube, source, Field::SourceMac)?;
                with_macs(cube, destination, Field::DestinationMac)
            })
            .collect();
        let meant = match flags {
            None => meant,
            // Flags bind TCP: UDP beside it matches without them.
            Some(flags) => {
                let tcp = only(TCP.into());
                let others = Field::Protocol.all().difference(&tcp);
                let of_tcp = meant.clone().limited(Field::Protocol, &tcp);
                of_tcp
                    .limited(Field::TcpFlags, &flags)
                    .union(meant.limited(Field::Protocol, &others))
            }
        };
        if self.spares_icmpv6 { meant.difference(&icmpv6()) } else { meant }
    }
}

/// Every `ICMPv6` packet.
pub(super) fn icmpv6() -> PacketSet {
    let v6 = AddressSet { v6: RangeSet::all(), ..AddressSet::default() };
    let cube = Cube::between(&v6, &v6).limited(Field::Protocol, &only(ICMPV6.into()));
    cube.into_iter().collect()
}

/// The bytes for which this holds.
fn numbers_of_bytes(holds: impl Fn(u8) -> bool) -> RangeSet<u128> {
    let bytes = (0..=u8::MAX).filter(|byte| holds(*byte));
    bytes.map(|byte| Range::single(byte.into())).collect()
}

/// The ICMP messages that are meant: type and code in one number.
fn messages(icmp: Icmp) -> RangeSet<u128> {
    let first = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(0)]);
    let last = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(u8::MAX)]);
    let named = Range::new(first.into(), last.into()).into_iter().collect();
    if icmp.not { Field::SourcePort.all().difference(&named) } else { named }
}

fn ports(place: &Place, field: Field) -> RangeSet<u128> {
    place.ports.as_ref().map_or_else(|| field.all(), RangeSet::numbers)
}

/// Those of which a MAC address is meant: others than Ethernet frames have none.
fn with_macs(cube: Cube, place: &Place, field: Field) -> Option<Cube> {
    match &place.macs {
        MacMatch::Any => Some(cube),
        MacMatch::Only(macs) => {
            cube.limited(Field::Hardware, &only(ETHERNET))?.limited(field, &macs.numbers())
        }
    }
}
