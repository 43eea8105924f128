//! Regions of the vendor's cloud: from which subnets each one's manager calls.

use super::region_names::{own_name, unpublished};
use crate::model::{AddressRange, AddressSet};
use crate::system::file::{self, Trust};
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The catalogue as the vendor published it; each entry has its date and its source.
const PUBLISHED: &str = include_str!("../../data/regions.toml");

/// The day on which whoever released this version compared the catalogue with the vendor's page.
pub(super) const CHECKED: &str = "2026-11-28";

/// Where a host keeps regions of its own, and corrections of the built-in ones.
pub const OVERRIDES: &str = "/etc/agent-fw/regions.toml";

/// The block of "Deep Security as a Service" until about 2019. It is obsolete: whoever admits it
/// admits whoever has it now.
pub const OBSOLETE: &str = "54.221.196.0/24";

/// A region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Where it is, in words.
    pub place: String,
    /// The subnets that its manager calls from.
    pub subnets: Vec<IpNet>,
    /// The manager's domain.
    pub domain: String,
    /// The date (year-month-day) of the copy of the source that the values were read from.
    pub as_of: String,
    /// What they were read from.
    pub source: String,
}

impl Region {
    /// The addresses of all subnets.
    pub fn addresses(&self) -> AddressSet {
        self.subnets.iter().map(|&subnet| range(subnet)).collect()
    }
}

pub(super) fn range(subnet: IpNet) -> AddressRange {
    match subnet {
        IpNet::V4(prefix) => prefix.into(),
        IpNet::V6(prefix) => prefix.into(),
    }
}

/// A name that no region has, and those nearest to it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct UnknownRegion {
    /// The name as it was given.
    pub name: String,
    /// Names of regions, the nearest first.
    pub nearest: Vec<String>,
    /// Where it is, if there is such a region and its subnets are not published.
    pub unpublished: Option<(&'static str, &'static str)>,
}

impl fmt::Display for UnknownRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, place)) = self.unpublished {
            return write!(
                f,
                "region {name} ({place}) is known by name, but its subnets are not published: ask \
                 the vendor for them, and add them to {OVERRIDES} by `agent-fw regions import`"
            );
        }
        write!(f, "there is no region `{}`; ", self.name)?;
        match self.nearest.as_slice() {
            [] => f.write_str("`agent-fw regions list` names them")?,
            nearest => write!(f, "the nearest names are {}", nearest.join(", "))?,
        }
        Ok(())
    }
}

/// All known regions by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalogue {
    regions: BTreeMap<String, Region>,
}

impl Catalogue {
    /// The built-in regions.
    pub fn published() -> anyhow::Result<Self> {
        let regions = parse("the built-in catalogue", PUBLISHED)?;
        Ok(Self { regions })
    }

    /// Puts the regions of this text in the place of those of the same names. `file` is its name,
    /// for errors.
    pub fn override_with(&mut self, file: &str, text: &str) -> anyhow::Result<()> {
        self.regions.extend(parse(file, text)?);
        Ok(())
    }

    /// The built-in regions with this host's own: an entry of the same name replaces the built-in
    /// one as a whole. A missing file changes nothing.
    pub fn with_overrides(path: &Path) -> anyhow::Result<Self> {
        let mut catalogue = Self::published()?;
        if let Some(text) = file::read_trusted(path, Trust::Anybody)? {
            catalogue.override_with(&path.display().to_string(), &text)?;
        }
        Ok(catalogue)
    }

    /// The region of this name.
    pub fn get(&self, name: &str) -> Result<&Region, UnknownRegion> {
        self.named(name).map(|(_, region)| region)
    }

    /// The region of this name, which may be the provider's for its place, with its own name.
    pub fn named(&self, name: &str) -> Result<(&str, &Region), UnknownRegion> {
        let find = |name: &str| self.regions.get_key_value(name);
        find(name)
            .or_else(|| own_name(name).and_then(find))
            .map(|(name, region)| (name.as_str(), region))
            .ok_or_else(|| self.unknown(name))
    }

    /// The region that a host of the manager's is in, by its domain.
    pub fn region_of_host(&self, host: &str) -> Option<(&str, &Region)> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.iter().find(|(_, region)| {
            host.strip_suffix(region.domain.as_str())
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }

    /// Whether a region is as this version has it.
    pub fn is_published(&self, name: &str) -> bool {
        let published = Self::published().ok();
        published.is_some_and(|known| known.regions.get(name) == self.regions.get(name))
    }

    /// All regions, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Region)> {
        self.regions.iter().map(|(name, region)| (name.as_str(), region))
    }

    fn unknown(&self, name: &str) -> UnknownRegion {
        let wanted = name.to_ascii_lowercase();
        let mut near: Vec<_> = self
            .regions
            .keys()
            .map(|known| (strsim::damerau_levenshtein(&wanted, known), known))
            .collect();
        near.sort();
        let nearest = near.into_iter().take(3).map(|(_, known)| known.clone()).collect();
        UnknownRegion { name: name.to_owned(), nearest, unpublished: unpublished(&wanted) }
    }
}

pub(super) fn parse(file: &str, text: &str) -> anyhow::Result<BTreeMap<String, Region>> {
    let regions = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    checked(file, regions)
}

/// Refuses regions that cannot be.
pub(super) fn checked(
    file: &str,
    regions: BTreeMap<String, Region>,
) -> anyhow::Result<BTreeMap<String, Region>> {
    for (name, region) in &regions {
        check(name, region).with_context(|| format!("{file}: region `{name}`"))?;
    }
    Ok(regions)
}

/// An error of a TOML file with its place in it.
pub(crate) fn located(file: &str, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let (line, column) = line_and_column(text, error);
    anyhow::anyhow!("{file}:{line}:{column}: {}", error.message())
}

/// Where an error of a TOML file is: the line and the column, counted from 1.
pub(crate) fn line_and_column(text: &str, error: &toml::de::Error) -> (usize, usize) {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text[..text.floor_char_boundary(start)];
    let column = 1 + before.chars().rev().take_while(|&c| c != '\n').count();
    (1 + before.matches('\n').count(), column)
}

fn check(name: &str, region: &Region) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        bail!("expected a name of at most 64 letters, digits, `-`, `_` and `.`");
    }
    if region.subnets.is_empty() {
        bail!("expected at least one subnet");
    }
    for subnet in &region.subnets {
        if subnet.addr() != subnet.network() {
            bail!("{subnet} has host bits set; expected {}", subnet.trunc());
        }
    }
    if !is_date(&region.as_of) {
        bail!("as_of is `{}`; expected a date such as 2025-12-09", region.as_of);
    }
    Ok(())
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_valid_and_does_not_ship_the_obsolete_block() {
        let catalogue = Catalogue::published().expect("valid");
        let obsolete: IpNet = OBSOLETE.parse().expect("valid");
        let obsolete: AddressSet = [range(obsolete)].into_iter().collect();
        assert_eq!(catalogue.iter().count(), 11);
        for (name, region) in catalogue.iter() {
            assert!(region.addresses().intersection(&obsolete).is_empty(), "{name}");
            assert!(region.subnets.iter().all(|subnet| subnet.prefix_len() == 27), "{name}");
        }
    }

    #[test]
    fn regions_do_not_overlap() {
        let catalogue = Catalogue::published().expect("valid");
        let all: Vec<_> = catalogue.iter().collect();
        for (index, (name, region)) in all.iter().enumerate() {
            for (other_name, other) in &all[..index] {
                let both = region.addresses().intersection(&other.addresses());
                assert!(both.is_empty(), "{name} and {other_name}: {both:?}");
            }
        }
    }

    #[test]
    fn an_unknown_region_is_answered_with_the_nearest_names() {
        let catalogue = Catalogue::published().expect("valid");
        let error = catalogue.get("us1").expect_err("no such region").to_string();
        assert!(
            error.starts_with("there is no region `us1`; the nearest names are us-1"),
            "{error}"
        );
        let error = catalogue.get("GB-1").expect_err("names are lower case").to_string();
        assert!(error.contains("gb-1"), "{error}");
    }

    #[test]
    fn the_providers_names_are_aliases_and_unpublished_regions_are_told() {
        let catalogue = Catalogue::published().expect("valid");
        let own = |name| catalogue.named(name).map(|(own, _)| own.to_owned());
        assert_eq!(own("ap-northeast-1").as_deref(), Ok("jp-1"));
        for (region, _) in catalogue.iter() {
            let alias = crate::input::provider_name(region).expect("a place of the provider's");
            assert_eq!(own(alias).as_deref(), Ok(region));
        }
        for name in ["za-1", "id-1", "id", "br-1", "sa-east-1"] {
            let said = own(name).expect_err("no subnets").to_string();
            assert!(said.contains("not published") && said.contains("regions import"), "{said}");
        }
        let host = |host| catalogue.region_of_host(host).map(|(name, _)| name.to_owned());
        let expected = Some("gov-us-1".to_owned());
        assert_eq!(host("agents-002.workload.gov-us-1.cloudonegov.trendmicro.com"), expected);
        assert_eq!(host("agents.workload.US-1.cloudone.trendmicro.com."), Some("us-1".to_owned()));
        assert_eq!(
            host("agents.workload.trend-us-1.cloudone.trendmicro.com").as_deref(),
            Some("trend-us-1")
        );
        assert_eq!(host("evilworkload.us-1.cloudone.trendmicro.com"), None);
    }

    #[test]
    fn a_host_overrides_and_extends_the_catalogue() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("regions.toml");
        let entry = "place = 'here'\nsubnets = ['192.0.2.0/24', '2001:db8::/32']\n\
                     domain = 'a.example'\nas_of = '2026-01-02'\nsource = 'our own'\n";
        std::fs::write(&file, format!("[us-1]\n{entry}[lab]\n{entry}")).expect("written");
        let catalogue = Catalogue::with_overrides(&file).expect("valid");
        assert_eq!(catalogue.iter().count(), 12);
        assert_eq!(catalogue.get("us-1"), catalogue.get("lab"));
        let missing =
            Catalogue::with_overrides(&dir.path().join("none")).expect("no file, no change");
        assert_eq!(missing, Catalogue::published().expect("valid"));
    }

    #[test]
    fn faults_of_a_regions_file_are_named_with_their_place() {
        let entry = |subnets: &str, date: &str| {
            format!(
                "[lab]\nplace = 'here'\nsubnets = [{subnets}]\ndomain = 'a.example'\n\
                 as_of = '{date}'\nsource = 'x'\n"
            )
        };
        for (text, expected) in [
            (entry("'192.0.2.1/24'", "2026-01-02"), "has host bits set; expected 192.0.2.0/24"),
            (entry("", "2026-01-02"), "expected at least one subnet"),
            (entry("'192.0.2.0/24'", "soon"), "expected a date"),
            (entry("'192.0.2.0/24'", "2026-02-30"), "expected a date"),
            (entry("'192.0.2.0/33'", "2026-01-02"), "r.toml:3:"),
            ("[lab]\nsubnet = []\n".to_owned(), "r.toml:2:1: unknown field `subnet`"),
            ("[lab\n".to_owned(), "r.toml:1:"),
        ] {
            let error = format!("{:#}", parse("r.toml", &text).expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }
}
