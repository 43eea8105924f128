//! `agent-fw regions`: the catalogue.

use super::outcome::{Failure, Outcome, Result};
use super::report::{say, wrapped};
use super::words::catalogue;
use crate::source::{OVERRIDES, Region};
use serde_json::{Value, json};

/// Shows the regions of Workload Security that `region:NAME` can name
#[derive(clap::Subcommand, Debug)]
pub(super) enum Regions {
    /// Lists all regions with the subnets of their managers
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows one region, with where its values come from
    Show {
        /// The region's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Regions {
    pub(super) fn run(self) -> Result<Outcome> {
        let catalogue = catalogue()?;
        match self {
            Self::List { json: true } => {
                let all: Vec<Value> =
                    catalogue.iter().map(|(name, region)| as_json(name, region)).collect();
                say!("{:#}", Value::Array(all));
            }
            Self::List { json: false } => {
                for (name, region) in catalogue.iter() {
                    let subnets: Vec<String> =
                        region.subnets.iter().map(ToString::to_string).collect();
                    say!("{name:<11} {:<32} {}", region.place, subnets.join("  "));
                }
                say!("\nNo IPv6 subnet is published. Your own: {OVERRIDES}");
            }
            Self::Show { name, json } => {
                let region = catalogue.get(&name).map_err(|error| Failure::Input(error.into()))?;
                if json {
                    say!("{:#}", as_json(&name, region));
                } else {
                    show(&name, region);
                }
            }
        }
        Ok(Outcome::Done)
    }
}

fn as_json(name: &str, region: &Region) -> Value {
    let Region { place, subnets, domain, as_of, source } = region;
    json!({
        "name": name, "place": place, "subnets": subnets, "domain": domain, "as_of": as_of,
        "source": source,
    })
}

fn show(name: &str, region: &Region) {
    let Region { place, subnets, domain, as_of, source } = region;
    say!("name      {name}\nplace     {place}");
    for (index, subnet) in subnets.iter().enumerate() {
        let heading = if index == 0 { "subnets" } else { "" };
        say!("{heading:<9} {subnet}");
    }
    say!("domain    {domain}\nas of     {as_of}");
    say!("{}", wrapped("source    ", "          ", source));
}
