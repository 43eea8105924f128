//! Files of regions: TOML as in `regions.toml`, JSON as `regions list --json` prints it, or a
//! plain list of the subnets of one region.

use super::list::{HostBits, parse_addresses};
use super::region::{Catalogue, Region, checked, parse};
use crate::model::AddressSet;
use anyhow::{Context as _, bail};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a plain list does not say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beside {
    /// The region.
    pub region: Option<String>,
    /// Where the values are from.
    pub source: String,
    /// When they were read.
    pub as_of: String,
}

/// Regions by name.
pub type Regions = BTreeMap<String, Region>;

/// Reads a file of regions. `file` is its name, for errors.
pub fn read_regions(
    file: &str,
    text: &str,
    beside: &Beside,
    catalogue: &Catalogue,
) -> anyhow::Result<Regions> {
    let regions = match kind(text) {
        Kind::Json => from_json(file, text)?,
        Kind::Toml => parse(file, text)?,
        Kind::List => from_list(file, text, beside, catalogue)?,
    };
    if regions.is_empty() {
        bail!("{file}: it has no regions");
    }
    match &beside.region {
        None => Ok(regions),
        Some(name) => match regions.get(name) {
            Some(region) => Ok(BTreeMap::from([(name.clone(), region.clone())])),
            None => bail!("{file}: it has no region `{name}`"),
        },
    }
}

enum Kind {
    Json,
    Toml,
    List,
}

/// A list begins with an item; what begins with a table's heading is TOML.
fn kind(text: &str) -> Kind {
    let lines = text.lines().map(str::trim);
    let first = lines.clone().find(|line| !line.is_empty() && !line.starts_with('#'));
    let is_json = |line: &str| {
        let after = line.trim_start_matches('[').trim_start();
        line.starts_with('{')
            || line.starts_with('[') && (after.is_empty() || after.starts_with(['{', ']']))
    };
    match first {
        Some(line) if is_json(line) => Kind::Json,
        Some(line) if line.starts_with('[') || line.contains('=') => Kind::Toml,
        _ => Kind::List,
    }
}

/// An object by names, or a list of objects that have their names inside.
fn from_json(file: &str, text: &str) -> anyhow::Result<Regions> {
    let value: Value = serde_json::from_str(text).with_context(|| file.to_owned())?;
    let named: Vec<(String, Value)> = match value {
        Value::Object(regions) => regions.into_iter().collect(),
        Value::Array(list) => list
            .into_iter()
            .map(|mut region| {
                let name = region.as_object_mut().and_then(|fields| {
                    fields.remove("provider_name");
                    fields.remove("name")
                });
                let name = name.as_ref().and_then(Value::as_str).map(str::to_owned);
                name.map(|name| (name, region))
            })
            .collect::<Option<_>>()
            .with_context(|| format!("{file}: expected a name in every region"))?,
        _ => bail!("{file}: expected an object or a list of regions"),
    };
    let mut regions = Regions::new();
    for (name, value) in named {
        let region: Region =
            serde_json::from_value(value).with_context(|| format!("{file}: region `{name}`"))?;
        if regions.insert(name.clone(), region).is_some() {
            bail!("{file}: region `{name}` is there twice");
        }
    }
    checked(file, regions)
}

fn from_list(
    file: &str,
    text: &str,
    beside: &Beside,
    catalogue: &Catalogue,
) -> anyhow::Result<Regions> {
    let Some(name) = &beside.region else {
        bail!("{file}: a plain list does not say of which region it is; add --region NAME");
    };
    let known = catalogue.get(name).with_context(|| {
        format!("{file}: a plain list has no domain; describe a new region in TOML")
    })?;
    let list = parse_addresses(file, text)?;
    if let Some(HostBits { line, written, meant, .. }) = &list.host_bits {
        bail!("{file}:{line}: {written} has host bits set; expected {meant}");
    }
    let addresses =
        AddressSet { v4: list.v4.into_iter().collect(), v6: list.v6.into_iter().collect() };
    let Beside { source, as_of, .. } = beside;
    let region = Region {
        subnets: subnets(&addresses),
        as_of: as_of.clone(),
        source: source.clone(),
        ..known.clone()
    };
    checked(file, BTreeMap::from([(name.clone(), region)]))
}

/// The prefixes that make up a set.
fn subnets(addresses: &AddressSet) -> Vec<IpNet> {
    let v4 = addresses.v4.ranges().iter();
    let v4 = v4.flat_map(|range| Ipv4Subnets::new(range.first(), range.last(), 0));
    let v6 = addresses.v6.ranges().iter();
    let v6 = v6.flat_map(|range| Ipv6Subnets::new(range.first(), range.last(), 0));
    v4.map(IpNet::V4).chain(v6.map(IpNet::V6)).collect()
}

/// What changes when regions are imported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The region.
    pub region: String,
    /// Whether it is new.
    pub is_new: bool,
    /// Addresses that come.
    pub added: Vec<IpNet>,
    /// Addresses that go.
    pub removed: Vec<IpNet>,
    /// Other fields that change: what, from, to.
    pub fields: Vec<(&'static str, String, String)>,
}

/// What regions of a file change; nothing where they are as they were.
pub fn changes(catalogue: &Catalogue, regions: &Regions) -> Vec<Change> {
    let change = |(name, new): (&String, &Region)| {
        let old = catalogue.get(name).ok();
        let had = old.map(Region::addresses).unwrap_or_default();
        let has = new.addresses();
        let fields = old.map_or_else(Vec::new, |old| {
            let pairs = [
                ("place", &old.place, &new.place),
                ("domain", &old.domain, &new.domain),
                ("as_of", &old.as_of, &new.as_of),
                ("source", &old.source, &new.source),
            ];
            let differ = pairs.into_iter().filter(|(_, old, new)| old != new);
            differ.map(|(field, old, new)| (field, old.clone(), new.clone())).collect()
        });
        Change {
            region: name.clone(),
            is_new: old.is_none(),
            added: subnets(&has.difference(&had)),
            removed: subnets(&had.difference(&has)),
            fields,
        }
    };
    let changes = regions.iter().map(change);
    changes
        .filter(|change| *change != Change { region: change.region.clone(), ..Change::default() })
        .collect()
}

/// The text of a `regions.toml` with these regions in it. What else is there stays as it is,
/// comments included.
pub fn merged(file: &str, text: &str, regions: &Regions) -> anyhow::Result<String> {
    let mut document: toml_edit::DocumentMut =
        text.parse().with_context(|| format!("{file} is no TOML"))?;
    // Comments alone would come to stand behind what is added.
    let comments = if document.is_empty() { text } else { "" };
    if document.is_empty() {
        document = toml_edit::DocumentMut::new();
    }
    for (name, region) in regions {
        let Region { place, subnets, domain, as_of, source } = region;
        let subnets: toml_edit::Array = subnets.iter().map(ToString::to_string).collect();
        let entry = document.entry(name).or_insert(toml_edit::table());
        for (field, value) in [
            ("place", toml_edit::value(place)),
            ("subnets", toml_edit::value(subnets)),
            ("domain", toml_edit::value(domain)),
            ("as_of", toml_edit::value(as_of)),
            ("source", toml_edit::value(source)),
        ] {
            entry[field] = value;
        }
    }
    let text = format!("{comments}{document}");
    parse(file, &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, region: Option<&str>) -> anyhow::Result<Regions> {
        let beside = Beside {
            region: region.map(str::to_owned),
            source: "a letter".to_owned(),
            as_of: "2026-05-06".to_owned(),
        };
        read_regions("f", text, &beside, &Catalogue::published()?)
    }

    const TOML: &str = "# ours\n[lab]\nplace = 'here'\nsubnets = ['8.8.8.0/27']\n\
                        domain = 'a.example'\nas_of = '2026-01-02'\nsource = 'x'\n";

    #[test]
    fn the_three_forms_are_told_apart_and_mean_the_same() {
        let toml = read(TOML, None).expect("TOML");
        let object = r#"{"lab": {"place": "here", "subnets": ["8.8.8.0/27"],
            "domain": "a.example", "as_of": "2026-01-02", "source": "x"}}"#;
        assert_eq!(read(object, None).expect("JSON"), toml);
        let list =
            format!("[{}]", object[8..object.len() - 1].replacen('{', "{\"name\": \"lab\",", 1));
        assert_eq!(read(&list, None).expect("a list in JSON"), toml);
        let plain = read("# new\n34.205.5.0/27\n34.205.5.32 - 34.205.5.63\n", Some("us-1"));
        let plain = plain.expect("a plain list");
        assert_eq!(plain["us-1"].subnets, ["34.205.5.0/26".parse::<IpNet>().expect("valid")]);
        assert_eq!(
            (plain["us-1"].source.as_str(), plain["us-1"].place.as_str()),
            ("a letter", "United States")
        );
    }

    #[test]
    fn what_is_no_region_is_refused_with_the_reason() {
        for (text, region, expected) in [
            ("34.205.5.0/27\n", None, "add --region NAME"),
            ("34.205.5.0/27\n", Some("moon-1"), "a new region in TOML"),
            ("34.205.5.1/27\n", Some("us-1"), "f:1: 34.205.5.1/27 has host bits set"),
            ("# nothing\n", Some("us-1"), "at least one subnet"),
            (TOML, Some("us-1"), "no region `us-1`"),
            ("[]", None, "no regions"),
            ("[1]", None, "f"),
            (r#"{"lab": {"subnets": []}}"#, None, "missing field"),
            ("[lab]\nplace = 1\n", None, "f:2:"),
        ] {
            let error = format!("{:#}", read(text, region).expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn changes_name_what_comes_and_what_goes() {
        let catalogue = Catalogue::published().expect("valid");
        let same: Regions = catalogue.iter().map(|(n, r)| (n.to_owned(), r.clone())).collect();
        assert_eq!(changes(&catalogue, &same), []);
        let plain = read("34.205.5.0/26\n", Some("us-1")).expect("a list");
        let [change] = changes(&catalogue, &plain).try_into().expect("one change");
        let words = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(words(&change.added), ["34.205.5.32/27"]);
        assert_eq!(words(&change.removed), ["18.97.19.0/27"]);
        assert_eq!(change.fields.len(), 2, "as_of and source");
    }

    #[test]
    fn merging_keeps_what_else_is_in_the_file() {
        let plain = read("34.205.5.0/26\n", Some("us-1")).expect("a list");
        let text = merged("f", TOML, &plain).expect("merged");
        assert!(text.starts_with(TOML), "{text}");
        let read_back = parse("f", &text).expect("valid");
        assert_eq!(read_back["us-1"], plain["us-1"]);
        assert_eq!(merged("f", &text, &plain).expect("merged"), text);
        let text = merged("f", "# ours\n", &plain).expect("merged");
        assert!(text.starts_with("# ours\n[us-1]\n"), "{text}");
    }
}
