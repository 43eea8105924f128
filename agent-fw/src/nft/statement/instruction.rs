//! The kernel's instructions for statements.

use crate::model::Family;
use crate::nft::expression::{CtKey, Expression, MetaKey, Payload, PayloadBase};
use crate::nft::statement::{ConnectionState, End, OPENED_BY_BYPASS, Statement};
use std::net::IpAddr;

/// `NF_CT_STATE_INVALID_BIT` and `IPS_CONFIRMED` of linux/netfilter/nf_conntrack_common.h.
const STATE_INVALID: u32 = 1;
const STATUS_CONFIRMED: u32 = 8;
/// `IP_CT_DIR_REPLY`.
const DIRECTION_REPLY: u8 = 1;
/// The index of the loopback interface: the kernel makes it first in every network namespace.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/include/net/flow.h> (`LOOPBACK_IFINDEX`)
const LOOPBACK: u32 = 1;
/// `ARPHRD_ETHER`: the hardware type of interfaces that have MAC addresses of six bytes.
const ETHERNET: u16 = 1;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// A kind of device, with zeros behind its name.
const VRF: [u8; 16] = *b"vrf\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The number of TCP.
const TCP: u8 = 6;
/// `LOG_INFO` of syslog.
const LEVEL_INFO: u32 = 6;

impl Statement {
    pub(super) fn expressions(&self) -> Vec<Expression> {
        match self {
            Self::FromLoopback => {
                vec![Expression::Meta(MetaKey::InputInterface), equals(&LOOPBACK.to_ne_bytes())]
            }
            Self::FromVrf => {
                vec![Expression::Meta(MetaKey::InputInterfaceKind), equals(&VRF)]
            }
            Self::FromThisHost => vec![Expression::FibSourceType, equals(&LOCAL.to_ne_bytes())],
            Self::FromLinkLocal => {
                // fe80::/10.
                let leading = |bytes: [u8; 2]| [&bytes[..], &[0; 14]].concat();
                vec![
                    End::Source.address(Family::V6),
                    Expression::Mask(leading([0xff, 0xc0])),
                    equals(&leading([0xfe, 0x80])),
                ]
            }
            Self::LearnSource(family, set) => {
                vec![End::Source.address(*family), Expression::Learn { set: set.clone() }]
            }
            Self::LearnSourcePort(set) => {
                vec![End::Source.port(), Expression::Learn { set: set.clone() }]
            }
            Self::TcpTo(port) => {
                let mut tcp = destination_port();
                tcp.push(equals(&port.0.to_be_bytes()));
                tcp
            }
            Self::TcpToAnyOf(set) => {
                let mut tcp = destination_port();
                tcp.push(Expression::Lookup { set: set.clone() });
                tcp
            }
            Self::ToThisHost => vec![Expression::FibDestinationType, equals(&LOCAL.to_ne_bytes())],
            Self::Is(family) => {
                vec![Expression::Meta(MetaKey::NetworkProtocol), equals(&[family.number()])]
            }
            Self::AddressUpTo(end, last) => {
                vec![end.address(Family::of(*last)), Expression::CompareAtMost(octets(*last))]
            }
            Self::ToLoopback => {
                vec![Expression::Meta(MetaKey::OutputInterface), equals(&LOOPBACK.to_ne_bytes())]
            }
            Self::ProtocolIs(number) => {
                vec![Expression::Meta(MetaKey::TransportProtocol), equals(&[*number])]
            }
            Self::ProtocolIsNot(number) => {
                vec![Expression::Meta(MetaKey::TransportProtocol), differs(&[*number])]
            }
            Self::AddressIs(end, address, length) => {
                let load = end.prefix(Family::of(*address), *length);
                load.into_iter().chain([equals(&octets(*address))]).collect()
            }
            Self::PrefixIn(end, family, length, set) => {
                let look_up = Expression::Lookup { set: set.clone() };
                end.prefix(*family, *length).into_iter().chain([look_up]).collect()
            }
            Self::AddressIn(end, family, set) => {
                vec![end.address(*family), Expression::Lookup { set: set.clone() }]
            }
            Self::MacIs(end, mac) => end.mac(equals(&mac.0)),
            Self::MacIn(end, set) => end.mac(Expression::Lookup { set: set.clone() }),
            Self::PortIs(end, port) => vec![end.port(), equals(&port.0.to_be_bytes())],
            Self::PortIn(end, set) => vec![end.port(), Expression::Lookup { set: set.clone() }],
            Self::TcpFlags { mask, value, not } => {
                vec![transport(13, 1), Expression::Mask(vec![*mask]), compare(&[*value], *not)]
            }
            Self::IcmpHeader { bytes, not } => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                vec![transport(0, length), compare(bytes, *not)]
            }
            Self::Connection(state) => state.expressions(),
            Self::LabelConnection => {
                vec![Expression::Constant(label().to_vec()), Expression::SetCtLabels]
            }
            Self::Count(counter) => vec![Expression::Count { counter: counter.clone() }],
            Self::Limit { rate, burst } => vec![Expression::Limit { rate: *rate, burst: *burst }],
            Self::Log { prefix } => {
                vec![Expression::Log { prefix: prefix.clone(), level: LEVEL_INFO }]
            }
            Self::Accept => vec![Expression::Accept],
            Self::Drop => vec![Expression::Drop],
            Self::Jump(chain) => vec![Expression::Jump { chain: chain.clone() }],
            Self::Goto(chain) => vec![Expression::Goto { chain: chain.clone() }],
        }
    }
}

fn equals(bytes: &[u8]) -> Expression {
    Expression::CompareEqual(bytes.to_vec())
}

fn differs(bytes: &[u8]) -> Expression {
    Expression::CompareDifferent(bytes.to_vec())
}

fn compare(bytes: &[u8], not: bool) -> Expression {
    if not { differs(bytes) } else { equals(bytes) }
}

fn transport(offset: u32, length: u32) -> Expression {
    Expression::Payload(Payload { base: PayloadBase::Transport, offset, length })
}

/// The labels of a connection of which [`OPENED_BY_BYPASS`] alone is set.
const fn label() -> [u8; 16] {
    (1_u128 << OPENED_BY_BYPASS).to_ne_bytes()
}

impl ConnectionState {
    fn expressions(self) -> Vec<Expression> {
        match self {
            Self::Opens => vec![
                Expression::Ct(CtKey::Status),
                Expression::Mask(STATUS_CONFIRMED.to_ne_bytes().to_vec()),
                equals(&[0; 4]),
            ],
            Self::Valid => {
                vec![Expression::Ct(CtKey::State), differs(&STATE_INVALID.to_ne_bytes())]
            }
            Self::Reply => vec![Expression::Ct(CtKey::Direction), equals(&[DIRECTION_REPLY])],
            Self::OpenedByBypass => vec![
                Expression::Ct(CtKey::Labels),
                Expression::Mask(label().to_vec()),
                differs(&[0; 16]),
            ],
            Self::OpenedWithState => vec![
                Expression::Ct(CtKey::Labels),
                Expression::Mask(label().to_vec()),
                equals(&[0; 16]),
            ],
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl End {
    /// Loads the first bits of the address.
    fn prefix(self, family: Family, length: u8) -> Vec<Expression> {
        let mask = (length < family.bits()).then(|| Expression::Mask(octets(family.mask(length))));
        std::iter::once(self.address(family)).chain(mask).collect()
    }

    fn address(self, family: Family) -> Expression {
        let (source, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        let offset = match self {
            Self::Source => source,
            Self::Destination => source + length,
        };
        Expression::Payload(Payload { base: PayloadBase::Network, offset, length })
    }

    fn mac(self, compare: Expression) -> Vec<Expression> {
        let offset = match self {
            Self::Source => 6,
            Self::Destination => 0,
        };
        vec![
            Expression::Meta(MetaKey::InputInterfaceType),
            equals(&ETHERNET.to_ne_bytes()),
            Expression::Payload(Payload { base: PayloadBase::Link, offset, length: 6 }),
            compare,
        ]
    }

    fn port(self) -> Expression {
        match self {
            Self::Source => transport(0, 2),
            Self::Destination => transport(2, 2),
        }
    }
}

fn destination_port() -> Vec<Expression> {
    let tcp = [Expression::Meta(MetaKey::TransportProtocol), equals(&[TCP])];
    tcp.into_iter().chain([End::Destination.port()]).collect()
}

impl Family {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}
