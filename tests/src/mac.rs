//! An Ethernet address.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};

/// An Ethernet address, written with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let octets = self.0.map(|octet| format!("{octet:02x}"));
        f.pad(&octets.join(":"))
    }
}

impl FromStr for MacAddr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().with_context(|| format!("{text:?} has fewer than 6 octets"))?;
            *octet = u8::from_str_radix(part, 16)
                .with_context(|| format!("{part:?} in {text:?} is no octet in hexadecimal"))?;
        }
        ensure!(parts.next().is_none(), "{text:?} has more than 6 octets");
        Ok(Self(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::MacAddr;

    #[test]
    fn a_mac_address_reads_back_as_it_was_written() {
        let text = "02:00:5e:10:00:ff";
        assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), text);
        assert!("02:00:5e:10:00".parse::<MacAddr>().is_err());
        assert!("02:00:5e:10:00:ff:01".parse::<MacAddr>().is_err());
        assert!("02:00:5e:10:00:fg".parse::<MacAddr>().is_err());
    }
}
