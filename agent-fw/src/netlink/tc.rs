//! Traffic control at an interface's entrance, for kernels without TCX: BPF filters below the
//! queueing discipline `clsact`.

use crate::netlink::message;
use crate::netlink::message::{attribute, attributes, number, text};
use nix::errno::Errno;

/// A filter's place: the first of all priorities, and a handle of its own, so that other filters
/// may have the same priority.
pub const PRIORITY: u16 = 1;
/// The handle.
pub const HANDLE: u32 = 0x4118;

/// `struct tcmsg`.
const TC_BYTES: usize = 20;
/// `TC_H_CLSACT`, the parent of its hooks, and the hooks, of linux/pkt_sched.h.
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Attributes of linux/rtnetlink.h and linux/pkt_cls.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A filter of traffic that comes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Which comes first: the lowest.
    pub priority: u16,
    /// Its number among those of one priority.
    pub handle: u32,
    /// What kind of filter it is: `bpf`, `u32`.
    pub kind: String,
    /// A BPF filter's name.
    pub name: Option<String>,
    /// The kernel's number of its program.
    pub program: Option<u32>,
    /// Whether it is certain that it ends no packet, and does not take any elsewhere.
    pub never_ends: bool,
    /// What its actions may change of a packet.
    pub changes: Changes,
}

/// What a filter's actions may change of a packet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// The ports that TCP packets may be given; with `None`, any.
    pub ports: Vec<Option<u16>>,
    /// Whether they may change addresses, take packets elsewhere, or run a program.
    pub others: bool,
}

/// The filters of what comes in by this interface; none where there is no `clsact`.
pub fn filters(index: u32) -> anyhow::Result<Vec<Filter>> {
    filters_at(index, INGRESS)
}

/// The filters of what goes out by this interface.
pub fn filters_of_egress(index: u32) -> anyhow::Result<Vec<Filter>> {
    filters_at(index, EGRESS)
}

fn filters_at(index: u32, hook: u32) -> anyhow::Result<Vec<Filter>> {
    match message::dump(libc::RTM_GETTFILTER, &place(index, 0, hook, 0)) {
        Err(Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        found => Ok(found?.iter().filter_map(|body| parse(body)).collect()),
    }
}

/// Adds `clsact`; false where it is there already.
pub fn add_clsact(index: u32) -> nix::Result<bool> {
    let mut request = place(index, CLSACT, CLSACT_PARENT, 0);
    request.extend(attribute(TCA_KIND, b"clsact\0"));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match message::order(libc::RTM_NEWQDISC, flags, &request) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes our filter; also where it or its interface has gone.
pub fn remove_filter(index: u32) -> nix::Result<()> {
    let every_protocol = u32::from(0x0003_u16.to_be()); // ETH_P_ALL
    let info = u32::from(PRIORITY) << 16 | every_protocol;
    gone(message::order(libc::RTM_DELTFILTER, 0, &place(index, HANDLE, INGRESS, info)))
}

/// Removes `clsact`, unless it has filters; also where its interface has gone.
pub fn remove_clsact(index: u32) -> anyhow::Result<()> {
    for hook in [INGRESS, EGRESS] {
        if message::dump(libc::RTM_GETTFILTER, &place(index, 0, hook, 0))
            .is_ok_and(|f| !f.is_empty())
        {
            return Ok(());
        }
    }
    let request = place(index, CLSACT, CLSACT_PARENT, 0);
    Ok(gone(message::order(libc::RTM_DELQDISC, 0, &request))?)
}

fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL) => Ok(()),
        result => result,
    }
}

/// `struct tcmsg`.
fn place(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), info.to_ne_bytes()]
        .concat()
}

fn parse(body: &[u8]) -> Option<Filter> {
    let handle = number(body.get(8..)?)?;
    let priority = u16::try_from(number(body.get(16..)?)? >> 16).ok()?;
    let (kind, changes) = (String::new(), Changes::default());
    let mut filter =
        Filter { priority, handle, kind, name: None, program: None, never_ends: false, changes };
    for (kind, value) in attributes(body.get(TC_BYTES..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_OPTIONS if filter.kind == "bpf" => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = Some(text(value)),
                        TCA_BPF_ID => filter.program = number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let options = find(body.get(TC_BYTES..)?, TCA_OPTIONS);
    filter.never_ends =
        options.is_some_and(|options| never_ends(&filter.kind, options).unwrap_or(false));
    filter.changes = options.map(|options| changes_of(&filter.kind, options)).unwrap_or_default();
    // A priority is listed by itself, too.
    (filter.handle != 0).then_some(filter)
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`.
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;

/// The attribute in which a kind of filter has its actions: `TCA_U32_ACT`, `TCA_FLOWER_ACT`,
/// `TCA_BASIC_ACT`, `TCA_MATCHALL_ACT`, `TCA_FW_ACT`; nothing for one that is not known here.
fn place_of_actions(kind: &str) -> Option<u16> {
    match kind {
        "u32" => Some(7),
        "flower" | "basic" => Some(3),
        "matchall" => Some(2),
        "fw" => Some(4),
        _ => None,
    }
}

/// A filter's actions, each by its kind and with its options.
fn actions(place: u16, options: &[u8]) -> Vec<(String, &[u8])> {
    let all = attributes(find(options, place).unwrap_or_default());
    let parts = |(_, action)| {
        let kind = find(action, ACTION_KIND).map(text).unwrap_or_default();
        (kind, find(action, ACTION_OPTIONS).unwrap_or_default())
    };
    all.map(parts).collect()
}

/// Whether none of a filter's actions ends a packet or takes it elsewhere; nothing, where the kind of
/// filter is none of those whose actions are known here.
fn never_ends(kind: &str, options: &[u8]) -> Option<bool> {
    // Without an action, it names a class.
    let actions = actions(place_of_actions(kind)?, options);
    let is_harmless = |(kind, options): &(String, &[u8])| {
        // `struct tc_gact` and `struct tc_mirred`: index, capabilities, action and others.
        let parameters = |place| find(options, place).unwrap_or_default();
        match kind.as_str() {
            "skbedit" | "csum" | "connmark" | "ctinfo" => true,
            // `TC_ACT_UNSPEC`, `TC_ACT_OK`, `TC_ACT_RECLASSIFY`, `TC_ACT_PIPE`.
            "gact" => matches!(
                parameters(2).get(8..).and_then(number).map(u32::cast_signed),
                Some(-1 | 0 | 1 | 3)
            ),
            // `TCA_EGRESS_MIRROR`, `TCA_INGRESS_MIRROR`.
            "mirred" => matches!(parameters(2).get(20..).and_then(number), Some(2 | 4)),
            _ => false,
        }
    };
    Some(actions.iter().all(is_harmless))
}

/// What a filter's actions may change of a packet.
fn changes_of(kind: &str, options: &[u8]) -> Changes {
    let mut changes = Changes::default();
    let Some(place) = place_of_actions(kind) else {
        // BPF programs are known by themselves.
        return Changes { others: kind != "bpf", ..changes };
    };
    for (kind, options) in actions(place, options) {
        match kind.as_str() {
            "pedit" => edits(options, &mut changes),
            // They let pass, end, or leave a mark.
            "gact" | "police" | "sample" | "skbedit" | "csum" | "connmark" | "ctinfo"
            | "simple" => {}
            _ => changes.others = true,
        }
    }
    changes
}

/// What the action `pedit` writes: `struct tc_pedit_sel`, with a `struct tc_pedit_key` for each word.
fn edits(options: &[u8], changes: &mut Changes) {
    /// `TCA_PEDIT_PARMS`, `TCA_PEDIT_PARMS_EX`, `TCA_PEDIT_KEYS_EX`; of a key in it, `HTYPE`, `CMD`.
    const PLAIN: u16 = 2;
    const EXTENDED: u16 = 4;
    const KEYS: u16 = 5;
    const HEADER: u16 = 1;
    const COMMAND: u16 = 2;
    /// `TCA_PEDIT_KEY_EX_HDR_TYPE_NETWORK`, `ETH`, `UDP`; `TCP`.
    const NETWORK: u16 = 0;
    const ETHERNET: u16 = 1;
    const TCP: u16 = 4;
    const UDP: u16 = 5;
    const SELECTOR_BYTES: usize = 24;
    const KEY_BYTES: usize = 24;
    let selector = find(options, EXTENDED).or_else(|| find(options, PLAIN)).unwrap_or_default();
    let count = usize::from(selector.get(20).copied().unwrap_or(0));
    let keys = selector.get(SELECTOR_BYTES..).unwrap_or_default().chunks_exact(KEY_BYTES);
    let kinds: Vec<[u16; 2]> = attributes(find(options, KEYS).unwrap_or_default())
        .map(|(_, key)| {
            let word = |kind| find(key, kind)?.first_chunk().map(|word| u16::from_ne_bytes(*word));
            [HEADER, COMMAND].map(|kind| word(kind).unwrap_or(0))
        })
        .collect();
    for (at, key) in keys.take(count).enumerate() {
        let [header, command] = kinds.get(at).copied().unwrap_or([NETWORK, 0]);
        let (kept, value) = (&key[0..4], &key[4..8]);
        let offset = number(&key[8..]).unwrap_or(0);
        // Without options, the ports follow 20 bytes of IPv4, or 40 of IPv6.
        let is_ports = match header {
            TCP => offset == 0,
            NETWORK => offset >= 20,
            _ => false,
        };
        if is_ports && kept[2..] != [0xff, 0xff] {
            let is_set = command == 0 && kept[2..] == [0, 0] && header == TCP;
            changes.ports.push(is_set.then(|| u16::from_be_bytes([value[2], value[3]])));
        }
        changes.others |= !matches!(header, TCP | UDP | ETHERNET) && offset < 40;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpf_filter_is_read() {
        let mut body = place(7, HANDLE, INGRESS, 1 << 16 | 0x300);
        body.extend(attribute(TCA_KIND, b"bpf\0"));
        let name = attribute(TCA_BPF_NAME, b"agent_fw_tc\0");
        let options = [name, attribute(TCA_BPF_ID, &9_u32.to_ne_bytes())].concat();
        body.extend(attribute(TCA_OPTIONS, &options));
        let filter = parse(&body).expect("a filter");
        assert_eq!((filter.priority, filter.handle, filter.program), (1, HANDLE, Some(9)));
        assert_eq!((filter.kind.as_str(), filter.name.as_deref()), ("bpf", Some("agent_fw_tc")));
        assert_eq!(parse(&body[..18]), None);
    }

    #[test]
    fn a_port_that_pedit_sets_is_read() {
        // Of the word with both ports, the second half is set to 4118.
        let key = [&[0xff, 0xff, 0, 0][..], &[0, 0, 0x10, 0x16], &[0; 16]].concat();
        let selector = [&[0; 20][..], &[1, 0, 0, 0], &key].concat();
        let kind = |header: u16| {
            let header = attribute(1, &header.to_ne_bytes());
            attribute(5, &attribute(6, &[header, attribute(2, &[0, 0])].concat()))
        };
        let options = |header| [attribute(4, &selector), kind(header)].concat();
        let filter = |header| {
            let action = [attribute(1, b"pedit\0"), attribute(2, &options(header))].concat();
            changes_of("flower", &attribute(3, &attribute(1, &action)))
        };
        assert_eq!(filter(4), Changes { ports: vec![Some(4118)], others: false });
        assert_eq!(filter(5), Changes::default());
    }

    #[test]
    fn loopback_has_no_filter() {
        assert_eq!(filters(1).expect("listed"), []);
    }
}
