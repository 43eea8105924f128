//! The cipher suites that agents offer, as the vendor publishes them, by version of the agent.

use anyhow::Context as _;
use serde::Deserialize;
use std::collections::BTreeMap;

/// By versions of the agent, in the vendor's words.
const PUBLISHED: &str = include_str!("../../../data/cipher-suites.toml");

/// What agents of some versions offer.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The newest version of TLS that they speak, where that is published.
    pub tls: Option<String>,
    /// The suites, by their registered names, the preferred one first.
    pub suites: Vec<String>,
}

/// What each of the published versions offers, by its name.
pub fn offers() -> anyhow::Result<BTreeMap<String, Offer>> {
    toml::from_str(PUBLISHED).context("the built-in list of cipher suites is faulty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_version_offers_suites() {
        let offers = offers().expect("read");
        assert_eq!(offers.len(), 11);
        for (version, offer) in &offers {
            assert!(!offer.suites.is_empty(), "{version}");
            assert!(offer.suites.iter().all(|suite| suite.starts_with("TLS_")), "{version}");
        }
        let newest = &offers["12.0 and 20"];
        assert_eq!(newest.suites[0], "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384");
    }
}
