//! What somebody may have meant who wrote something that is no source.

use super::{Catalogue, Source};
use std::str::FromStr as _;

/// What may be meant by a text that is no source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Meant {
    /// This source.
    Source(String),
    /// Several, which are named one by one.
    Several,
    /// This host itself, which reaches the agent in any case.
    Loopback,
}

impl std::fmt::Display for Meant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(source) => write!(f, "; did you mean `{source}`?"),
            Self::Several => {
                f.write_str("; several sources are named one by one, each with its flag")
            }
            Self::Loopback => f.write_str("; this host itself reaches its agent in any case"),
        }
    }
}

/// What may be meant; `None` where nothing comes near.
pub(super) fn meant(text: &str) -> Option<Meant> {
    let text = text.trim();
    if text.contains([',', ';']) && text.split([',', ';']).all(is_near) {
        return Some(Meant::Several);
    }
    if matches!(text.to_ascii_lowercase().as_str(), "localhost" | "lo" | "loopback") {
        return Some(Meant::Loopback);
    }
    let tried = [
        plain(text),
        unbracketed(text),
        without_port(text),
        star(text),
        keyword(text),
        region(text),
    ];
    let is_source = |tried: &String| tried != text && Source::from_str(tried).is_ok();
    tried.into_iter().flatten().find(is_source).map(Meant::Source)
}

fn is_near(part: &str) -> bool {
    let part = part.trim();
    Source::from_str(part).is_ok() || meant(part).is_some()
}

/// Digits and signs of another width, as input methods type them.
fn plain(text: &str) -> Option<String> {
    /// From here on, Unicode has the characters of ASCII once more, twice as wide.
    const FULL_WIDTH: std::ops::RangeInclusive<u32> = 0xff01..=0xff5e;
    let narrow = |c: char| match u32::from(c) {
        wide if FULL_WIDTH.contains(&wide) => char::from_u32(wide - 0xff01 + 0x21).unwrap_or(c),
        // The full stops of Japanese.
        0x3002 | 0xff61 => '.',
        _ => c,
    };
    let plain: String = text.chars().map(narrow).collect();
    (plain != text).then(|| plain.to_ascii_lowercase())
}

/// `[2001:db8::1]`, and `[2001:db8::1]:4118`, as in a URL.
fn unbracketed(text: &str) -> Option<String> {
    let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
    let is_port =
        |rest: &str| rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (rest.is_empty() || is_port(rest)).then(|| address.to_owned())
}

/// `192.0.2.1:4118`.
fn without_port(text: &str) -> Option<String> {
    let (address, port) = text.rsplit_once(':')?;
    (port.parse::<u16>().is_ok() && !address.contains(':')).then(|| address.to_owned())
}

/// `192.0.2.*`, and `*` alone.
fn star(text: &str) -> Option<String> {
    if text == "*" {
        return Some("any".to_owned());
    }
    let octets: Vec<&str> = text.split('.').collect();
    let given: Vec<&str> = octets.iter().copied().take_while(|octet| *octet != "*").collect();
    let are_stars = octets[given.len()..].iter().all(|octet| *octet == "*");
    if octets.len() != 4 || given.len() == 4 || given.is_empty() || !are_stars {
        return None;
    }
    let zeros = std::iter::repeat_n("0", 4 - given.len());
    let network = given.iter().copied().chain(zeros).collect::<Vec<_>>().join(".");
    Some(format!("{network}/{}", 8 * given.len()))
}

/// A keyword in other letters: `Region:us-1`, `ANY`.
fn keyword(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    if matches!(lower.as_str(), "all" | "everyone" | "any") {
        return Some("any".to_owned());
    }
    let (word, rest) = text.split_once(':')?;
    let known = ["region", "file"].into_iter().find(|known| word.eq_ignore_ascii_case(known))?;
    let rest = if known == "region" { rest.to_lowercase() } else { rest.to_owned() };
    (known != word).then(|| format!("{known}:{rest}"))
}

/// A region's name without `region:`, or without its hyphen.
fn region(text: &str) -> Option<String> {
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.collect::<String>().to_ascii_lowercase()
    };
    let catalogue = Catalogue::published().ok()?;
    let wanted = letters(text);
    let name = catalogue.iter().map(|(name, _)| name).find(|name| letters(name) == wanted)?;
    Some(format!("region:{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_near_a_source_is_told() {
        for (text, source) in [
            ("us1", "region:us-1"),
            ("us-1", "region:us-1"),
            ("US-1", "region:us-1"),
            ("Region:us-1", "region:us-1"),
            ("REGION:US-1", "region:us-1"),
            ("File:/etc/my.list", "file:/etc/my.list"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4118", "2001:db8::1"),
            ("192.0.2.1:4118", "192.0.2.1"),
            ("192.0.2.*", "192.0.2.0/24"),
            ("10.*.*.*", "10.0.0.0/8"),
            ("*", "any"),
            ("ANY", "any"),
            ("１９２.０.２.１", "192.0.2.1"),
            ("１９２．０．２．１／２４", "192.0.2.1/24"),
            ("ａｎｙ", "any"),
        ] {
            assert_eq!(meant(text), Some(Meant::Source(source.to_owned())), "{text}");
        }
        assert_eq!(meant("region:us-1,region:jp-1"), Some(Meant::Several));
        assert_eq!(meant("192.0.2.1, 192.0.2.2"), Some(Meant::Several));
        assert_eq!(meant("localhost"), Some(Meant::Loopback));
        for text in ["", "nonsense", "192.0.2.*.1", "*.2", "host:4118", "agent.example", "1:2:3"] {
            assert_eq!(meant(text), None, "{text}");
        }
    }
}
