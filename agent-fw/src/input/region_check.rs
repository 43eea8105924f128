//! What is doubtful about a catalogue: nothing of it is wrong, but somebody should look.

use super::item;
use super::region::{CHECKED, Catalogue, OBSOLETE, Region, range};
use crate::model::{AddressSet, Notation};
use ipnet::IpNet;
use jiff::civil::Date;
use std::fmt;

/// Blocks from which nobody calls over the internet.
const RESERVED: [&str; 21] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/16",
    "64:ff9b::/96",
    "100::/64",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// The widest subnets that a manager may be expected to call from.
const WIDEST: (u8, u8) = (20, 32);

/// Something doubtful about a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// The region.
    pub region: String,
    /// What about it.
    pub about: About,
}

/// What is doubtful.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    /// Its values are a host's own, and were read more than half a year ago.
    Old {
        /// The date of then.
        as_of: String,
    },
    /// It is as this version has it, which was compared with the vendor's page half a year ago.
    Released {
        /// The date of then.
        checked: &'static str,
    },
    /// Its date is later than today.
    Future {
        /// The date.
        as_of: String,
    },
    /// Another region has some of its addresses, too.
    Overlap {
        /// The other.
        other: String,
        /// What both have.
        both: String,
    },
    /// A subnet has addresses from which nobody calls over the internet.
    Reserved {
        /// The subnet.
        subnet: IpNet,
        /// The block.
        block: &'static str,
    },
    /// A subnet is wide.
    Wide {
        /// The subnet.
        subnet: IpNet,
    },
    /// A subnet has addresses of the vendor's block of before 2019.
    Obsolete {
        /// The subnet.
        subnet: IpNet,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.region)?;
        match &self.about {
            About::Old { as_of } => {
                write!(
                    f,
                    "read on {as_of}, more than half a year ago; compare it with the vendor's page"
                )
            }
            About::Released { checked } => {
                write!(
                    f,
                    "as this version of agent-fw has it, compared with the vendor's page on \
                     {checked}, more than half a year ago; update agent-fw, or compare it"
                )
            }
            About::Future { as_of } => write!(f, "its date, {as_of}, is yet to come"),
            About::Overlap { other, both } => write!(f, "{both} belongs to {other}, too"),
            About::Reserved { subnet, block } => write!(
                f,
                "{subnet} has addresses of {block}, from which nobody calls over the internet"
            ),
            About::Wide { subnet } => {
                let (v4, v6) = WIDEST;
                write!(f, "{subnet} is wide; shorter than /{v4} (IPv6: /{v6}) admits many")
            }
            About::Obsolete { subnet } => {
                write!(f, "{subnet} has addresses of {OBSOLETE}, which the vendor left in 2019")
            }
        }
    }
}

/// Everything doubtful, region by region.
pub fn doubts(catalogue: &Catalogue, today: Date) -> Vec<Doubt> {
    let all: Vec<(&str, &Region)> = catalogue.iter().collect();
    let mut doubts = Vec::new();
    for (index, &(name, region)) in all.iter().enumerate() {
        let mut say = |about| doubts.push(Doubt { region: name.to_owned(), about });
        let is_own = !catalogue.is_published(name);
        age(region, is_own, today).into_iter().for_each(&mut say);
        for &(other, of_other) in &all[index + 1..] {
            let both = region.addresses().intersection(&of_other.addresses());
            if !both.is_empty() {
                say(About::Overlap { other: other.to_owned(), both: first(&both) });
            }
        }
        for &subnet in &region.subnets {
            about_subnet(subnet).into_iter().for_each(&mut say);
        }
    }
    doubts
}

/// After half a year, so that there is time before a region has moved: the vendor announces new
/// subnets months ahead.
fn age(region: &Region, is_own: bool, today: Date) -> Option<About> {
    let as_of: Date = region.as_of.parse().ok()?;
    let text = region.as_of.clone();
    let before = today.checked_sub(jiff::Span::new().months(6)).ok()?;
    if as_of > today {
        Some(About::Future { as_of: text })
    } else if is_own {
        (as_of < before).then_some(About::Old { as_of: text })
    } else {
        let checked: Date = CHECKED.parse().ok()?;
        (checked < before).then_some(About::Released { checked: CHECKED })
    }
}

impl About {
    /// What is doubtful, in a word, for programs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Old { .. } => "old",
            Self::Released { .. } => "old-release",
            Self::Future { .. } => "future",
            Self::Overlap { .. } => "overlap",
            Self::Reserved { .. } => "reserved",
            Self::Wide { .. } => "wide",
            Self::Obsolete { .. } => "obsolete",
        }
    }
}

/// The first range of a set.
fn first(set: &AddressSet) -> String {
    let v4 = set.v4.ranges().iter().map(Notation::notation);
    v4.chain(set.v6.ranges().iter().map(Notation::notation)).next().unwrap_or_default()
}

fn about_subnet(subnet: IpNet) -> Vec<About> {
    let mut about = Vec::new();
    let addresses: AddressSet = [range(subnet)].into_iter().collect();
    let meets = |block: &str| {
        item::parse(block).is_ok_and(|block| {
            let block: AddressSet = [block.range].into_iter().collect();
            !block.intersection(&addresses).is_empty()
        })
    };
    let reserved = RESERVED.into_iter().filter(|block| meets(block));
    about.extend(reserved.map(|block| About::Reserved { subnet, block }));
    let widest = if matches!(subnet, IpNet::V4(_)) { WIDEST.0 } else { WIDEST.1 };
    if subnet.prefix_len() < widest {
        about.push(About::Wide { subnet });
    }
    if meets(OBSOLETE) {
        about.push(About::Obsolete { subnet });
    }
    about
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, today: &str) -> Vec<String> {
        let mut catalogue = Catalogue::published().expect("valid");
        catalogue.override_with("r.toml", text).expect("valid");
        let today = today.parse().expect("a date");
        doubts(&catalogue, today).iter().map(ToString::to_string).collect()
    }

    fn region(name: &str, subnets: &str) -> String {
        format!(
            "[{name}]\nplace = 'here'\nsubnets = [{subnets}]\ndomain = 'a.example'\n\
             as_of = '2026-11-25'\nsource = 'our own'\n"
        )
    }

    #[test]
    fn the_built_in_catalogue_ages_from_the_release_and_a_hosts_own_regions_from_their_dates() {
        let day = |days: i64| {
            let checked: Date = CHECKED.parse().expect("a date");
            let later = checked.checked_add(jiff::Span::new().months(6).days(days));
            later.expect("a date").to_string()
        };
        assert_eq!(said("", &day(0)).len(), 0);
        let old = said("", &day(1));
        assert_eq!(old.len(), 11, "{old:?}");
        assert!(old[0].starts_with("ae-1: as this version of agent-fw has it"), "{old:?}");
        let own = region("us-1", "'8.8.8.0/27'");
        assert_eq!(said(&own, "2027-05-25").len(), 0);
        let old = said(&own, "2027-05-26");
        assert_eq!(old.len(), 1, "{old:?}");
        assert!(old[0].starts_with("us-1: read on 2026-11-25, more than half a year"), "{old:?}");
    }

    #[test]
    fn nothing_in_the_catalogue_was_read_after_it_was_compared() {
        let catalogue = Catalogue::published().expect("valid");
        for (name, region) in catalogue.iter() {
            assert!(region.as_of.as_str() <= CHECKED, "{name}: {} is later", region.as_of);
        }
    }

    #[test]
    fn each_doubtful_subnet_is_named_with_the_reason() {
        for (subnets, expected) in [
            ("'10.1.0.0/24'", "lab: 10.1.0.0/24 has addresses of 10.0.0.0/8"),
            ("'fd00::/64'", "lab: fd00::/64 has addresses of fc00::/7"),
            ("'8.0.0.0/19'", "lab: 8.0.0.0/19 is wide"),
            ("'2600::/31'", "lab: 2600::/31 is wide"),
            ("'34.205.5.16/28'", "lab: 34.205.5.16/28 belongs to us-1, too"),
            ("'54.221.196.128/25'", "lab: 54.221.196.128/25 has addresses of 54.221.196.0/24"),
        ] {
            let said = said(&region("lab", subnets), "2026-12-01");
            assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?}");
        }
        assert!(said(&region("lab", "'8.8.0.0/20', '2600::/32'"), "2026-12-01").is_empty());
        let early = said(&region("lab", "'8.8.0.0/24'"), "2026-01-01");
        assert!(early.contains(&"lab: its date, 2026-11-25, is yet to come".to_owned()));
    }
}
