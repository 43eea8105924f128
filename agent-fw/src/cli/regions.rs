//! `agent-fw regions`: the catalogue.

use super::LockWait;
use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say, wrapped};
use crate::engine::policy::catalogue;
use crate::input;
use crate::input::{
    Beside, Catalogue, Change, Doubt, ListFile, OVERRIDES, Region, changes, doubts, merged,
    provider_name, read_regions, sibling,
};
use crate::system::{file, lock};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::path::Path;

/// Shows the regions of Workload Security that `region:NAME` can name
#[derive(clap::Subcommand, Debug)]
pub(super) enum Regions {
    /// Lists all regions with the subnets of their managers
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Warns of what is old, overlapping, reserved or wide (exit code 1 if anything is)
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows what the regions of a file would change (exit code 1 if anything)
    Diff {
        #[command(flatten)]
        file: FileOfRegions,
    },
    /// Puts the regions of a file into /etc/agent-fw/regions.toml
    ///
    /// Nothing is enforced before `agent-fw apply`.
    Import {
        #[command(flatten)]
        file: FileOfRegions,
        #[command(flatten)]
        patience: LockWait,
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

/// A file of regions, and what a plain list does not say.
#[derive(clap::Args, Debug)]
pub(super) struct FileOfRegions {
    /// TOML or JSON as of regions.toml, or a plain list of the subnets of a region; `-` is stdin
    file: String,
    /// Only this region of the file; the one that a plain list is of
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Where the subnets of a plain list are from; without it, the file's name
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// When they were read; without it, today
    #[arg(long, value_name = "DATE")]
    as_of: Option<Date>,
}

impl FileOfRegions {
    fn read(&self, catalogue: &Catalogue) -> Result<input::Regions> {
        let file = ListFile::from(self.file.clone());
        let text = file.read_once().map_err(Failure::Input)?;
        let source = self.source.clone().unwrap_or_else(|| file.to_string());
        let as_of = self.as_of.unwrap_or_else(today).to_string();
        let beside = Beside { region: self.region.clone(), source, as_of };
        read_regions(&file.to_string(), &text, &beside, catalogue).map_err(Failure::Input)
    }
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
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
            Self::Check { json } => return Ok(check(&catalogue, json)),
            Self::Diff { file } => {
                let changes = changes(&catalogue, &file.read(&catalogue)?);
                changes.iter().for_each(print_change);
                if !changes.is_empty() {
                    return Ok(Outcome::False);
                }
                report::remark("no change: the regions of the file are known so");
            }
            Self::Import { file, patience } => import(&file, &patience, &catalogue)?,
            Self::Show { name, json } => {
                let found = catalogue.named(&name).map_err(|error| Failure::Input(error.into()));
                let (name, region) = found?;
                if json {
                    say!("{:#}", as_json(name, region));
                } else {
                    show(name, region);
                }
            }
        }
        Ok(Outcome::Done)
    }
}

fn check(catalogue: &Catalogue, json: bool) -> Outcome {
    let doubts = doubts(catalogue, today());
    let said: Vec<String> = doubts.iter().map(ToString::to_string).collect();
    if json {
        let warning = |doubt: &Doubt| {
            json!({
                "region": doubt.region, "about": doubt.about.word(), "said": doubt.to_string(),
            })
        };
        let warnings: Vec<Value> = doubts.iter().map(warning).collect();
        let good = doubts.is_empty();
        say!("{:#}", json!({ "good": good, "doubts": said, "warnings": warnings }));
    } else {
        report::differences(&said);
    }
    match doubts.len() {
        0 if !json => report::good("good:", "nothing old, overlapping, reserved or wide"),
        number if !json => report::bad("doubtful:", format_args!("{number} warning(s)")),
        _ => {}
    }
    if doubts.is_empty() { Outcome::Done } else { Outcome::False }
}

fn print_change(change: &Change) {
    let Change { region, is_new, added, removed, fields } = change;
    say!("{region}{}", if *is_new { " (new)" } else { "" });
    for subnet in added {
        say!("  + {subnet}");
    }
    for subnet in removed {
        say!("  - {subnet}");
    }
    for (field, from, to) in fields {
        say!("{}", wrapped("  ", "    ", &format!("{field}: `{from}` becomes `{to}`")));
    }
}

fn import(from: &FileOfRegions, patience: &LockWait, catalogue: &Catalogue) -> Result<()> {
    let regions = from.read(catalogue)?;
    let _lock = lock::acquire("regions import", patience.duration())?;
    let path = Path::new(OVERRIDES);
    let before = file::read_trusted(path, file::Trust::Anybody)?.unwrap_or_default();
    let text = merged(OVERRIDES, &before, &regions).map_err(Failure::Input)?;
    let mut after = catalogue.clone();
    after.override_with(OVERRIDES, &text).map_err(Failure::Input)?;
    let changes = changes(catalogue, &regions);
    if text != before {
        file::write(path, &text)?;
    }
    changes.iter().for_each(print_change);
    for doubt in doubts(&after, today()) {
        if regions.contains_key(&doubt.region) {
            report::caution("note:", doubt);
        }
    }
    report::remark(match changes.len() {
        0 => "no change: the regions of the file are known so",
        _ => "written to /etc/agent-fw/regions.toml; `agent-fw apply` enforces it",
    });
    Ok(())
}

fn as_json(name: &str, region: &Region) -> Value {
    let Region { place, subnets, domain, as_of, source } = region;
    json!({
        "name": name, "provider_name": provider_name(name), "place": place, "subnets": subnets, "domain": domain, "as_of": as_of,
        "source": source,
    })
}

fn show(name: &str, region: &Region) {
    let Region { place, subnets, domain, as_of, source } = region;
    say!("name      {name}\nplace     {place}");
    if let Some(provider) = provider_name(name) {
        say!("also      {provider}");
    }
    for (index, subnet) in subnets.iter().enumerate() {
        let heading = if index == 0 { "subnets" } else { "" };
        say!("{heading:<9} {subnet}");
    }
    say!("domain    {domain}\nas of     {as_of}");
    say!("{}", wrapped("source    ", "          ", source));
    if let Some(other) = sibling(name) {
        let said = format!("the vendor's page lists these subnets and those of {other} together");
        say!("{}", wrapped("beside    ", "          ", &said));
    }
}
