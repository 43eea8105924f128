//! What gives packets the agent's port behind a program on the interface, which has let them pass:
//! rules that change the port, the load balancer IPVS, and what packets are unpacked from.

use super::registers::written;
use crate::model::{Port, RangeSet};
use crate::netlink::message;
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{find, number, text};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// A rule of nf_tables, as far as it may give packets one of these ports on this host.
pub(super) struct Rewriting<'a> {
    ports: &'a RangeSet<Port>,
    here: &'a BTreeSet<IpAddr>,
    /// The registers whose values are known.
    constants: BTreeMap<u32, Vec<u8>>,
    protocols: BTreeSet<u32>,
    may_be_tcp: bool,
    rewrites: bool,
}

impl<'a> Rewriting<'a> {
    pub(super) fn new(ports: &'a RangeSet<Port>, here: &'a BTreeSet<IpAddr>) -> Self {
        let (constants, protocols) = (BTreeMap::new(), BTreeSet::new());
        Self { ports, here, constants, protocols, may_be_tcp: true, rewrites: false }
    }

    /// Whether the rule is one.
    pub(super) fn rewrites(&self) -> bool {
        self.rewrites && self.may_be_tcp
    }

    /// Takes in an expression of the rule.
    pub(super) fn add(&mut self, name: &str, data: &[u8]) {
        let field = |kind| find(data, kind).and_then(number);
        match name {
            "immediate" => {
                let value = find(data, 2).and_then(|value| find(value, 1));
                if let (Some(register), Some(value)) = (field(1), value) {
                    self.constants.insert(register, value.to_vec());
                }
            }
            // `NFT_META_L4PROTO`.
            "meta" if field(2) == Some(16) => {
                self.overwrite(field(1));
                self.protocols.extend(field(1));
            }
            "cmp" if field(1).is_some_and(|register| self.protocols.contains(&register)) => {
                let value = find(data, 3).and_then(|data| find(data, 1)).unwrap_or_default();
                self.may_be_tcp &= (field(2).unwrap_or(0) == 0) == (value == [TCP]);
            }
            // `NFTA_PAYLOAD_SREG`: it writes; bytes 2 and 3 behind the network's header.
            "payload" if field(5).is_some() && field(2) == Some(2) => {
                let (offset, length) = (field(3).unwrap_or(0), field(4).unwrap_or(0));
                if offset < 4 && offset + length > 2 {
                    let value = field(5).filter(|_| (offset, length) == (2, 2));
                    self.rewrites |= self.may_be_ours(value, None);
                }
            }
            // Of type 1, DNAT, with a port.
            "nat" if field(1) == Some(1) && field(5).is_some() => {
                self.rewrites |= self.may_be_ours(field(5), field(6)) && self.may_be_here(field(3));
            }
            "redir" if field(1).is_some() => {
                self.rewrites |= self.may_be_ours(field(1), field(2));
            }
            "target" => self.target(data),
            _ => self.overwrite(written(name, data)),
        }
    }

    /// Another value takes a register, and, where it has 16 bytes, the parts of it that have numbers
    /// of their own.
    fn overwrite(&mut self, register: Option<u32>) {
        let Some(register) = register else { return };
        let parts = if (1..=4).contains(&register) {
            // `NFT_REG32_00` is 8, and the beginning of `NFT_REG_1`.
            9 + (register - 1) * 4..12 + (register - 1) * 4
        } else {
            0..0
        };
        for register in parts.chain([register]) {
            self.constants.remove(&register);
            self.protocols.remove(&register);
        }
    }

    /// Whether one of the ports may be what a register holds, or between that and what another does.
    fn may_be_ours(&self, first: Option<u32>, last: Option<u32>) -> bool {
        let known = |register| self.constants.get(&register).and_then(|value| port(value));
        let Some(from) = first.and_then(known) else { return true };
        let to = last.map_or(Some(from), known).unwrap_or(u16::MAX);
        (from..=to).any(|port| self.ports.contains(Port(port)))
    }

    /// Whether a register may hold an address of this host.
    fn may_be_here(&self, register: Option<u32>) -> bool {
        let value = register.and_then(|register| self.constants.get(&register));
        value.and_then(|value| address(value)).is_none_or(|address| self.is_here(address))
    }

    fn is_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.here.contains(&address)
    }

    /// A target of iptables', in iptables-nft: `struct nf_nat_ipv4_multi_range_compat`,
    /// `struct nf_nat_range`, `struct nf_nat_range2`.
    fn target(&mut self, data: &[u8]) {
        const MAPS_ADDRESS: u32 = 1;
        const MAPS_PORT: u32 = 2;
        let name = find(data, 1).map(text).unwrap_or_default();
        if !matches!(name.as_str(), "REDIRECT" | "DNAT") {
            return;
        }
        let info = find(data, 3).unwrap_or_default();
        let is_compat = info.len() < 40;
        let [flags, first, ports] = if is_compat { [4, 8, 16] } else { [0, 4, 36] };
        let flags = info.get(flags..).and_then(message::number).unwrap_or(MAPS_PORT);
        let bound = |at: usize| info.get(at..).and_then(port);
        let (from, to) = (bound(ports).unwrap_or(0), bound(ports + 2).unwrap_or(u16::MAX));
        let is_ours = |wanted: &u16| self.ports.contains(Port(*wanted));
        let to_ours = flags & MAPS_PORT != 0 && (from..=to).any(|port| is_ours(&port));
        let v4 = info.get(first..first + 4).and_then(address);
        let v6 = info.get(first..first + 16).and_then(address);
        let is_local = [v4, v6].into_iter().flatten().any(|address| self.is_here(address));
        self.rewrites |= to_ours && (flags & MAPS_ADDRESS == 0 || is_local);
    }

    /// Whether a line of iptables-legacy is such a rule.
    pub(super) fn is_line(&self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|known| *known == word)?;
            words.get(at + 1).copied()
        };
        let is_incoming = line.starts_with("-A ") && !line.starts_with("-A OUTPUT ");
        let is_tcp = after("-p").is_none_or(|protocol| protocol == "tcp");
        let is_ours = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else { return true };
            (from..=to).any(|port| self.ports.contains(Port(port)))
        };
        let rewrites = match after("-j") {
            Some("REDIRECT") => after("--to-ports").is_some_and(is_ours),
            Some("DNAT") => after("--to-destination").is_some_and(|to| {
                let Some((address, port)) = to.rsplit_once(':') else { return false };
                let address = address.trim_matches(['[', ']']);
                // Without an address, the port alone is changed.
                let is_here = || address.parse().is_ok_and(|address| self.is_here(address));
                is_ours(port) && (address.is_empty() || is_here())
            }),
            _ => false,
        };
        is_incoming && is_tcp && rewrites
    }

    /// The services of IPVS that lead to one of the ports here, as the kernel lists them.
    pub(super) fn services(&self, listed: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut service = "";
        for line in listed.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["TCP" | "FWM", of, ..] => service = of,
                ["UDP" | "SCTP", ..] => service = "",
                ["->", server, ..] if !service.is_empty() && self.is_served(server) => {
                    found.push(format!("IPVS: service {service} has the server {server}"));
                }
                _ => {}
            }
        }
        found
    }

    /// `0A010002:1016`, `[2001:0db8:0000:0000:0000:0000:0000:0001]:1016`.
    fn is_served(&self, server: &str) -> bool {
        let Some((address, port)) = server.rsplit_once(':') else { return false };
        let v4 = || u32::from_str_radix(address, 16).ok().map(|bits| Ipv4Addr::from(bits).into());
        let v6 = || address.trim_matches(['[', ']']).parse().ok();
        let is_ours = u16::from_str_radix(port, 16).is_ok_and(|p| self.ports.contains(Port(p)));
        is_ours && v4().or_else(v6).is_some_and(|address| self.is_here(address))
    }
}

/// The services of IPVS that lead to one of these ports here.
pub(super) fn balanced(rewriting: &Rewriting<'_>) -> Vec<String> {
    let listed = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
    rewriting.services(&listed)
}

/// What packets come out of that no program on the interface can look into, in words.
pub(super) fn unpacked() -> Vec<String> {
    let ipsec = has_security_associations().unwrap_or_default();
    let segments = has_local_segments().unwrap_or_default();
    let labels = has_labels().unwrap_or_default();
    let accepting: Vec<&str> = ["seg6_enabled", "rpl_seg_enabled"]
        .into_iter()
        .filter(|parameter| is_set_anywhere(parameter))
        .collect();
    let accepting = (!accepting.is_empty())
        .then(|| format!("IPv6 routing headers (net.ipv6.conf.*.{})", accepting.join(", ")));
    let words = [
        labels.then_some("MPLS (`ip -f mpls route`)"),
        ipsec.then_some("IPsec (`ip xfrm state`)"),
        segments.then_some("IPv6 segment routing (routes with `encap seg6local`)"),
    ];
    words.into_iter().flatten().map(str::to_owned).chain(accepting).collect()
}

/// Whether the kernel takes labels off packets.
fn has_labels() -> nix::Result<bool> {
    /// `AF_MPLS` of linux/socket.h.
    const MPLS: u8 = 28;
    let mut request = [0; ROUTE_BYTES];
    request[0] = MPLS;
    let routes = message::dump(libc::RTM_GETROUTE, &request)?;
    // Without MPLS, the kernel answers with all families that it has.
    Ok(routes.iter().any(|route| route.first() == Some(&MPLS)))
}

/// Whether a parameter of IPv6 is set on an interface.
fn is_set_anywhere(parameter: &str) -> bool {
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    interfaces.map(|interface| interface.path().join(parameter)).any(|path| {
        // What is set for all is set for none by itself.
        let is_one =
            !path.parent().is_some_and(|at| at.ends_with("all") || at.ends_with("default"));
        is_one && fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    })
}

/// `struct rtmsg`.
const ROUTE_BYTES: usize = 12;

/// Whether the kernel has a security association of IPsec's.
fn has_security_associations() -> anyhow::Result<bool> {
    /// `XFRM_MSG_NEWSA` and `XFRM_MSG_GETSA` of linux/xfrm.h.
    const NEW: u16 = 0x10;
    const GET: u16 = 0x12;
    /// The kernel sends at most as much of a dump at once.
    const DUMP_BYTES: usize = 32 * 1024;
    let Ok(socket) = mnl::Socket::new(mnl::Bus::Xfrm) else { return Ok(false) };
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    socket.send(&message::message_of(GET, flags, &[]))?;
    let mut buffer = vec![0; DUMP_BYTES];
    let length = socket.recv_raw(&mut buffer)?;
    let mut messages = message::messages(&buffer[..length]);
    Ok(messages.any(|(kind, ..)| kind == NEW))
}

/// Whether a route ends segment routing here.
fn has_local_segments() -> nix::Result<bool> {
    /// `RTA_ENCAP_TYPE` of linux/rtnetlink.h, `LWTUNNEL_ENCAP_SEG6_LOCAL` of linux/lwtunnel.h.
    const ENCAP_TYPE: u16 = 21;
    const SEG6_LOCAL: u16 = 7;
    let mut request = [0; ROUTE_BYTES];
    request[0] = u8::try_from(libc::AF_INET6).unwrap_or_default();
    let routes = message::dump(libc::RTM_GETROUTE, &request)?;
    Ok(routes.iter().any(|route| {
        let mut all = attributes(route.get(ROUTE_BYTES..).unwrap_or_default());
        all.any(|(kind, value)| {
            kind == ENCAP_TYPE && value.first_chunk() == Some(&SEG6_LOCAL.to_ne_bytes())
        })
    }))
}

/// The addresses of this host.
pub(super) fn addresses() -> BTreeSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let address = |of: nix::ifaddrs::InterfaceAddress| {
        let storage = of.address?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    all.filter_map(address).collect()
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Range;

    fn with<T>(ask: impl FnOnce(&Rewriting<'_>) -> T) -> T {
        let ports = Range::single(Port::AGENT).into();
        let here = BTreeSet::from(["192.0.2.1".parse().expect("an address")]);
        ask(&Rewriting::new(&ports, &here))
    }

    #[test]
    fn a_rule_of_iptables_legacy_that_changes_the_port_is_one() {
        let is_line = |line: &str| with(|rewriting| rewriting.is_line(line));
        let redirect = "-A PREROUTING -p tcp -m tcp --dport 8444 -j REDIRECT --to-ports 4118";
        assert!(is_line(redirect));
        assert!(!is_line(&redirect.replace("4118", "4119")));
        assert!(!is_line(&redirect.replace("-p tcp", "-p udp")));
        assert!(!is_line(&redirect.replace("PREROUTING", "OUTPUT")));
        assert!(is_line(&redirect.replace("4118", "4000-5000")));
        let dnat = "-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.1:4118";
        assert!(is_line(dnat));
        // A container's.
        assert!(!is_line(&dnat.replace("192.0.2.1", "172.17.0.2")));
    }

    #[test]
    fn a_service_of_ipvs_that_has_the_port_here_is_one() {
        let listed = "IP Virtual Server version 1.2.1 (size=4096)\n\
                      Prot LocalAddress:Port Scheduler Flags\n  \
                      -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                      TCP  C0000201:20FB rr \n  \
                      -> C0000201:1016      Masq    1      0          0         \n  \
                      -> C0000202:1016      Masq    1      0          0         \n";
        assert_eq!(
            with(|rewriting| rewriting.services(listed)),
            ["IPVS: service C0000201:20FB has the server C0000201:1016"]
        );
        assert!(with(|rewriting| rewriting.services(&listed.replace("TCP", "UDP"))).is_empty());
    }
}
