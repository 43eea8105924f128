//! Names of regions beside the catalogue's: those of the cloud's provider, and those of regions of
//! which no subnet is published.

/// The provider's name of a region's place, and the region's own. Of each, the published subnets are
/// the provider's there.
const ALIASES: [(&str, &str); 11] = [
    ("us-east-1", "us-1"),
    ("us-east-2", "trend-us-1"),
    ("ca-central-1", "ca-1"),
    ("eu-west-2", "gb-1"),
    ("eu-central-1", "de-1"),
    ("ap-northeast-1", "jp-1"),
    ("ap-southeast-2", "au-1"),
    ("ap-south-1", "in-1"),
    ("ap-southeast-1", "sg-1"),
    ("me-central-1", "ae-1"),
    ("us-gov-west-1", "gov-us-1"),
];

/// Regions that are known by name alone: names, and the place.
const UNPUBLISHED: [(&[&str], &str); 3] = [
    (&["za-1", "za", "af-south-1"], "Cape Town"),
    (&["id-1", "id", "ap-southeast-3"], "Jakarta"),
    (&["br-1", "br", "sa-east-1"], "São Paulo"),
];

/// The name that the catalogue has, of a name of the provider's.
pub(super) fn own_name(name: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, own)| *own)
}

/// The name that the provider has for a region's place.
pub fn provider_name(region: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(_, own)| *own == region).map(|(alias, _)| *alias)
}

/// A region that is known by name alone: its name, and its place.
pub(super) fn unpublished(name: &str) -> Option<(&'static str, &'static str)> {
    let names = |(names, place): &(&'static [&'static str], &'static str)| {
        names.contains(&name).then(|| (names[0], *place))
    };
    UNPUBLISHED.iter().find_map(names)
}

/// The other region of a country that has two: the vendor's page lists the subnets of both together,
/// and who means one may need the other.
pub fn sibling(region: &str) -> Option<&'static str> {
    match region {
        "us-1" => Some("trend-us-1"),
        "trend-us-1" => Some("us-1"),
        _ => None,
    }
}
