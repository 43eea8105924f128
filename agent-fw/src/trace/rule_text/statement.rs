//! Statements of rules that remember packets, as nftables writes them.

use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{find, long, number, text};

/// The words of a statement; `key` is what a set is asked for.
pub(super) fn words(name: &str, data: &[u8], key: Option<&str>) -> Option<String> {
    let flags = |kind| find(data, kind).and_then(number).unwrap_or(0);
    Some(match name {
        "limit" => {
            let (rate, unit) = (long(find(data, 1)?)?, long(find(data, 2)?)?);
            let unit = match unit {
                1 => "second".to_owned(),
                60 => "minute".to_owned(),
                3_600 => "hour".to_owned(),
                86_400 => "day".to_owned(),
                604_800 => "week".to_owned(),
                seconds => format!("{seconds}s"),
            };
            // `NFT_LIMIT_PKT_BYTES`, `NFT_LIMIT_F_INV`.
            let bytes = if flags(4) == 1 { " bytes" } else { "" };
            let over = if flags(5) & 1 == 1 { "over " } else { "" };
            format!("limit rate {over}{rate}{bytes}/{unit}")
        }
        "quota" => {
            // `NFT_QUOTA_F_INV`.
            let over = if flags(2) & 1 == 1 { "over " } else { "" };
            format!("quota {over}{} bytes", long(find(data, 1)?)?)
        }
        "connlimit" => {
            let over = if flags(2) & 1 == 1 { "over " } else { "" };
            format!("ct count {over}{}", number(find(data, 1)?)?)
        }
        "last" => "last".to_owned(),
        "numgen" => {
            let way = if flags(3) == 0 { "inc" } else { "random" };
            format!("numgen {way} mod {}", number(find(data, 2)?)?)
        }
        "dynset" => {
            let operation = ["add", "update", "delete"].get(usize::try_from(flags(3)).ok()?)?;
            let key = key.unwrap_or("…");
            let timeout = find(data, 6).and_then(long).filter(|timeout| *timeout > 0);
            let timeout =
                timeout.map_or_else(String::new, |ms| format!(" timeout {}s", ms / 1_000));
            let one = find(data, 7).into_iter();
            let several = attributes(find(data, 10).unwrap_or_default()).map(|(_, inner)| inner);
            let mut inner: Vec<String> = Vec::new();
            for statement in one.chain(several) {
                let name = find(statement, 1).map(text)?;
                let words = words(&name, find(statement, 2).unwrap_or_default(), None);
                let words = words.unwrap_or(name);
                if !inner.contains(&words) {
                    inner.push(words);
                }
            }
            let inner = inner.iter().fold(String::new(), |all, words| format!("{all} {words}"));
            format!("{operation} @{} {{ {key}{timeout}{inner} }}", find(data, 1).map(text)?)
        }
        "objref" => {
            let Some(object) = find(data, 2) else {
                return Some(format!("name from map @{}", find(data, 4).map(text)?));
            };
            let kind = match flags(1) {
                1 => "counter",
                2 => "quota",
                3 => "ct helper set",
                4 => "limit",
                5 => "ct count",
                7 => "ct timeout set",
                9 => "ct expectation set",
                10 => "synproxy",
                _ => "object",
            };
            format!("{kind} name \"{}\"", text(object))
        }
        _ => return None,
    })
}
