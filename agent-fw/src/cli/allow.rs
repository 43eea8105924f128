//! `agent-fw allow` and `agent-fw deny`: one source more, or one less.

use super::change::{ChangeArgs, Proposal};
use super::outcome::{Failure, Outcome, Result};
use super::policy_args::parse_all;
use crate::configuration::{Configuration, Edit};
use crate::engine::apply::Read;
use crate::engine::policy;
use crate::input::{Lists, MacSource, Source, resolve};
use crate::model::AddressSet;
use crate::model::rule::Addresses;
use anyhow::anyhow;

/// Admits sources besides those of the installed policy
///
/// An exception that `agent-fw deny` has made of the same source is removed; otherwise the source is
/// added to `allow_from` in policy.toml. Everything else stays as it is.
#[derive(clap::Args, Debug)]
pub(super) struct Allow {
    /// What is to be admitted, as for `install --allow-from`
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Admits sources no longer
///
/// A source that is named exactly so in `allow_from` is removed there. One that something else admits,
/// such as an address of a region, becomes an exception (`except` in policy.toml), which stays also
/// when the region's or the list's addresses change; `agent-fw allow` of the same removes it.
#[derive(clap::Args, Debug)]
pub(super) struct Deny {
    /// What is not to be admitted, as for `install --allow-from`
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Allow {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self { sources, change } = self;
        let sources = parse(&sources)?;
        change.check("allow")?;
        change.carry_out("allow", None, |read| {
            let proposal = edited(read, &sources, Configuration::allow)?;
            // Whoever allows `any` says so.
            Ok(Proposal { says_any: sources.contains(&Source::Any), ..proposal })
        })
    }
}

impl Deny {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self { sources, change } = self;
        let sources = parse(&sources)?;
        change.check("deny")?;
        change.carry_out("deny", None, |read| {
            let deny = |configuration: &mut Configuration, source: &Source| {
                configuration.deny(source, |left| admits_some_of(left, source))
            };
            Ok(Proposal { drops_on_purpose: true, ..edited(read, &sources, deny)? })
        })
    }
}

fn parse(texts: &[String]) -> Result<Vec<Source>> {
    let mac = texts
        .iter()
        .find(|text| text.parse::<Source>().is_err() && text.parse::<MacSource>().is_ok());
    if let Some(mac) = mac {
        return Err(Failure::Input(anyhow!(
            "{mac} is a MAC address, which a packet must have besides one of the sources: `agent-fw \
             set --allow-mac` says which may"
        )));
    }
    parse_all("SOURCE", texts).map_err(|faults| Failure::Input(anyhow!(faults)))
}

/// The installed policy with one thing changed for each source.
fn edited(
    read: &Read,
    sources: &[Source],
    edit: impl Fn(&mut Configuration, &Source) -> anyhow::Result<Vec<Edit>>,
) -> Result<Proposal> {
    let installed = read.compile()?.0;
    let mut configuration = Configuration { is_legacy: false, lacks_end: false, ..installed };
    let mut remarks = Vec::new();
    for source in sources {
        let edits = edit(&mut configuration, source).map_err(Failure::Input)?;
        remarks.extend(edits.iter().map(ToString::to_string));
    }
    configuration.check().map_err(Failure::Input)?;
    let lists = configuration.keep_lists().map_err(Failure::Input)?;
    Ok(Proposal { remarks, ..Proposal::new(configuration, lists) })
}

/// Whether a configuration admits some of what a source names.
fn admits_some_of(configuration: &Configuration, source: &Source) -> anyhow::Result<bool> {
    let lists = Lists::trusting(configuration.trust());
    let catalogue = policy::catalogue().map_err(Failure::into_error)?;
    let compiled = configuration.compile(&catalogue, &lists)?;
    let named = resolve("SOURCE", std::slice::from_ref(source), &catalogue, &lists)?;
    let named = Addresses(named.addresses).all();
    let policy = compiled.lowered.policy;
    let admissions = policy.admissions().iter();
    let admitted = admissions.fold(AddressSet::default(), |all, a| all.union(&a.addresses));
    Ok(!admitted.intersection(&named).is_empty())
}
