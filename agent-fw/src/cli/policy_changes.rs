//! The flags that say what the policy is, as `set` takes them: those that are given change the
//! installed policy, and the others leave it alone.

use super::outcome::{Failure, Result};
use super::policy_args::PolicyArgs;
use crate::configuration::Configuration;
use crate::input::options::Mode;
use crate::input::outbound::Outbound;
use anyhow::anyhow;
use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeSet;

/// The word that empties a list.
const NONE: &str = "none";

/// Flags of [`PolicyArgs`], and which of them are given.
#[derive(Clone, Debug)]
pub(super) struct PolicyChanges {
    words: PolicyArgs,
    given: BTreeSet<String>,
}

impl Args for PolicyChanges {
    fn augment_args(command: Command) -> Command {
        let switch = |arg: Arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_name("yes|no")
                .default_value("no")
                .default_missing_value("yes")
                .hide_default_value(true)
                .value_parser(BoolishValueParser::new())
        };
        PolicyArgs::augment_args(command).mut_args(|arg| switch(arg).hide_default_value(true))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PolicyChanges {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let known = PolicyArgs::augment_args(Command::new("set"));
        let ids = known.get_arguments().map(|arg| arg.get_id().as_str());
        let given = ids.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        let given = given.map(str::to_owned).collect();
        Ok(Self { words: PolicyArgs::from_arg_matches(matches)?, given })
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl PolicyChanges {
    /// Whether nothing is to be changed.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Whether they say in so many words that everyone is admitted.
    pub(super) fn say_any(&self) -> bool {
        self.words.say_any()
    }

    /// The installed configuration, so changed.
    pub(super) fn of(&self, installed: &Configuration) -> Result<Configuration> {
        let mut words = self.words.clone();
        words.lists_mut().into_iter().filter(|list| **list == [NONE]).for_each(Vec::clear);
        let said = words.parsed()?;
        let mut changed = Configuration { is_legacy: false, lacks_end: false, ..installed.clone() };
        let is_given = |id: &str| self.given.contains(id);
        macro_rules! take {
            ($($flag:literal => $key:ident),* $(,)?) => {
                $(if is_given($flag) { changed.$key = said.$key.clone(); })*
            };
        }
        take! {
            "allow_from" => allow_from, "except" => except, "allow_mac" => allow_mac,
            "rules" => rules, "policy" => policy, "no_engine_rules" => engine_rules,
            "assigned" => assigned, "assigned_policy" => assigned_policy,
            "all_rules" => all_rules, "skip_unsupported" => skip_unsupported,
            "no_stateful_udp" => udp_stateful, "stateful_icmp" => icmp_stateful,
            "lenient" => lenient, "relay" => relay, "outbound_to" => outbound_to, "port" => port,
            "direction" => direction, "otherwise" => otherwise, "early_drop" => early_drop,
            "log" => log, "backend" => backend, "interface" => interfaces, "xdp_mode" => xdp_mode,
            "allow_wide" => allow_wide, "trust_file_modes" => trust_file_modes,
        }
        if !is_given("all_rules") && ["assigned", "assigned_policy"].into_iter().any(is_given) {
            changed.all_rules = Some(false);
        }
        // What is set anew is read as this version reads it.
        if is_given("rules") && installed.rules.is_empty() {
            changed.all_rules = changed.all_rules.or(said.all_rules);
        }
        if is_given("policy") && !installed.policy {
            changed.udp_stateful = changed.udp_stateful.or(said.udp_stateful);
        }
        changed.outbound = match said.outbound {
            Outbound::DefaultDeny => Outbound::DefaultDeny,
            Outbound::NeedsOpen => Outbound::NeedsOpen,
            // Turned off, or not spoken of.
            Outbound::Untouched if is_given("restrict_outbound") => Outbound::Untouched,
            Outbound::Untouched if is_given("default_deny_outbound") => match changed.outbound {
                Outbound::DefaultDeny => Outbound::NeedsOpen,
                other => other,
            },
            Outbound::Untouched => changed.outbound,
        };
        if is_given("direction") && changed.direction == Mode::AgentInitiated {
            // The port is closed to every source: there is nobody to name.
            for (id, list) in
                [("allow_from", &mut changed.allow_from), ("except", &mut changed.except)]
            {
                if !is_given(id) {
                    list.clear();
                }
            }
            if !is_given("allow_mac") {
                changed.allow_mac.clear();
            }
        }
        if changed.names_nobody() && changed.direction != Mode::AgentInitiated {
            return Err(Failure::Input(anyhow!(
                "then nothing says who may reach the port: name sources with --allow-from, or say \
                 --allow-from any if every source is meant"
            )));
        }
        changed.check().map_err(Failure::Input)?;
        changed.check_standard_input().map_err(Failure::Input)?;
        Ok(changed)
    }
}
