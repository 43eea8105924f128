//! `agent-fw tls`: what the vendor publishes about the agent's encryption.

use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use crate::system::tls::{Offer, offers};
use anyhow::anyhow;
use serde_json::{Value, json};

/// Shows the cipher suites that agents offer to their manager
#[derive(clap::Subcommand, Debug)]
pub(super) enum Tls {
    /// Lists the cipher suites by the agent's version
    List {
        /// Only versions that begin so, such as 11.0 or 20
        #[arg(long, value_name = "VERSION")]
        agent: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Tls {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self::List { agent, json } = self;
        let offers = offers()?;
        let meant = |version: &str| agent.as_deref().is_none_or(|wanted| names(version, wanted));
        let found: Vec<(&String, &Offer)> =
            offers.iter().filter(|(version, _)| meant(version)).collect();
        if let (true, Some(wanted)) = (found.is_empty(), &agent) {
            let known: Vec<&str> = offers.keys().map(String::as_str).collect();
            return Err(Failure::Input(anyhow!(
                "no published version of the agent is `{}`; there are: {}",
                wanted.escape_debug(),
                known.join(", ")
            )));
        }
        if json {
            let offer = |(version, offer): &(&String, &Offer)| json!({ "agent": version, "tls": offer.tls, "suites": offer.suites });
            let list: Vec<Value> = found.iter().map(offer).collect();
            say!("{:#}", Value::Array(list));
            return Ok(Outcome::Done);
        }
        for (version, Offer { tls, suites }) in found {
            let tls = tls.as_ref().map_or_else(String::new, |tls| format!(", TLS {tls}"));
            say!("agent {version}{tls}");
            for suite in suites {
                say!("  {suite}");
            }
        }
        report::remark(
            "Manager and agent take the newest version of TLS that both have. Agents from 10.0 \
             speak TLS 1.2.",
        );
        Ok(Outcome::Done)
    }
}

/// Whether a published heading such as `12.0 and 20` or `9.6 to 9.6 Patch 1` names this version.
fn names(heading: &str, wanted: &str) -> bool {
    let wanted = wanted.strip_suffix(".0").unwrap_or(wanted);
    heading.split([' ', ',']).any(|word| {
        let word = word.strip_suffix(".0").unwrap_or(word);
        word == wanted
            || wanted.strip_prefix(word).is_some_and(|rest| {
                rest.starts_with('.') && word.starts_with(|c: char| c.is_ascii_digit())
            })
    })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_version_is_found_in_the_headings_that_name_it() {
        for (heading, wanted, due) in [
            ("12.0 and 20", "20", true),
            ("12.0 and 20", "20.0", true),
            ("12.0 and 20", "20.0.1", true),
            ("12.0 and 20", "12", true),
            ("12.0 and 20", "2", false),
            ("11.0 from Update 6", "11.0", true),
            ("9.6 to 9.6 Patch 1", "9.6", true),
            ("9.6 to 9.6 Patch 1", "9.5", false),
            ("9.6 SP1 Patch 1 Update 5 to 21", "21", true),
        ] {
            assert_eq!(names(heading, wanted), due, "{heading}, {wanted}");
        }
    }
}
