//! `policy.toml`: the configuration as a file that people read and change.

use crate::configuration::Configuration;
use crate::input::ListFile;
use crate::input::options::Mode;
use crate::model::digest;
use anyhow::{Context as _, bail};
use std::fmt::Write as _;

/// The line of `policy.toml` by which a change by hand is recognised.
const DIGEST: &str = "# As written by agent-fw: ";

impl Configuration {
    /// Reads `policy.toml`. `file` is its name, for errors.
    pub fn parse(file: &str, text: &str) -> anyhow::Result<Self> {
        let mut configuration: Self =
            toml::from_str(text).map_err(|error| crate::input::located(file, text, &error))?;
        configuration.lacks_end = !is_whole(text);
        configuration.is_legacy = !configuration.lacks_end && !text.contains(CONSENT);
        configuration.check().with_context(|| file.to_owned())?;
        configuration.check_lasting().with_context(|| file.to_owned())?;
        Ok(configuration)
    }

    /// Refuses what a file cannot mean: a policy that lost its sources, and lists that are not
    /// the same at every boot and from every directory.
    fn check_lasting(&self) -> anyhow::Result<()> {
        let agent_initiated = self.direction == Mode::AgentInitiated;
        if self.names_nobody() && !agent_initiated {
            bail!("allow_from names no source; to admit every source, it must be [\"any\"]");
        }
        for list in self.lists() {
            match list {
                ListFile::Path(path) if path.is_absolute() => {}
                ListFile::Path(path) => bail!("file:{} needs a path from the root", path.display()),
                ListFile::StandardInput => bail!("file:- cannot be read at boot; name a file"),
            }
        }
        Ok(())
    }

    /// The text of `policy.toml`.
    pub fn to_toml(&self) -> String {
        let Self {
            outbound, port, direction, otherwise, early_drop, log, backend, xdp_mode, ..
        } = self;
        let allow_from = list(self.allow_from.iter().map(ToString::to_string).collect());
        let except = list(self.except.iter().map(ToString::to_string).collect());
        let allow_mac = list(self.allow_mac.iter().map(ToString::to_string).collect());
        let interfaces = list(self.interfaces.clone());
        let rules = self.rules_in_toml();
        let relay = list(self.relay.iter().map(ToString::to_string).collect());
        let outbound_to = list(self.outbound_to.iter().map(ToString::to_string).collect());
        let (allow_wide, trust_file_modes) = (self.allow_wide, self.trust_file_modes);
        let mut text = format!(
            "# Who may reach the security agent's port. After a change: agent-fw apply\n\
             \n\
             # Addresses, prefixes, ranges, \"region:NAME\", \"file:PATH\", or \"any\".\n\
             # \"any\" admits every source, as the agent's hidden rule does.\n\
             allow_from = {allow_from}\n\
             \n\
             # Sources that nothing admits, though something above, or a rule, names them.\n\
             except = {except}\n\
             \n\
             # MAC addresses or \"file:PATH\"; a packet must then match both lists.\n\
             allow_mac = {allow_mac}\n\
             \n\
             {rules}\
             # On a relay: the sources that alone reach its port, TCP 4122.\n\
             # An empty list leaves that port alone.\n\
             relay = {relay}\n\
             \n\
             # Connections that this host opens: untouched; needs-open (what the agent needs,\n\
             # whatever the rules of a policy say); or default-deny (and nothing else).\n\
             outbound = \"{outbound}\"\n\
             \n\
             # Where services of your own are, such as \"dns-server=192.0.2.53\"; others may\n\
             # be anywhere. \"relay=none\": there is none.\n\
             outbound_to = {outbound_to}\n\
             \n\
             # Where the agent listens.\n\
             port = {port}\n\
             \n\
             # bidirectional, manager-initiated, or agent-initiated (closed to all).\n\
             direction = \"{direction}\"\n\
             \n\
             # What becomes of other sources: drop, or continue (to the host's other rules).\n\
             otherwise = \"{otherwise}\"\n\
             \n\
             # Drop refused packets before routing and connection tracking, too.\n\
             early_drop = {early_drop}\n\
             \n\
             # Write refused packets to the kernel's log, at most 10 a second.\n\
             log = {log}\n\
             \n\
             # nft: a table of nf_tables; xdp: a program on each interface; or both.\n\
             backend = \"{backend}\"\n\
             \n\
             # Interfaces for XDP; an empty list stands for each physical one that is up.\n\
             interfaces = {interfaces}\n\
             \n\
             # native (in the driver) or generic.\n\
             xdp_mode = \"{xdp_mode}\"\n\
             \n\
             # Admit single ranges wider than a /8, or a /16 of IPv6.\n\
             allow_wide = {allow_wide}\n\
             \n\
             # Read lists and rule files though others than root can change them.\n\
             {CONSENT}{trust_file_modes}\n\
             \n"
        );
        let digest = digest(&text);
        let _ = writeln!(text, "{DIGEST}{digest}");
        text
    }

    /// What `policy.toml` says about files of rules.
    fn rules_in_toml(&self) -> String {
        let files = |files: &[ListFile]| list(files.iter().cloned().map(String::from).collect());
        let (rules, assigned) = (files(&self.rules), files(&self.assigned));
        let assigned_policy = toml::Value::String(self.assigned_policy.clone());
        let (all_rules, skip_unsupported) = (self.all_rules.unwrap_or(true), self.skip_unsupported);
        let (policy, lenient) = (self.policy, self.lenient);
        let engine_rules = self.engine_rules.unwrap_or(false);
        let (udp_stateful, icmp_stateful) =
            (self.udp_stateful.unwrap_or(false), self.icmp_stateful);
        format!(
            "# Files of rules in the vendor's vocabulary, JSON or TOML. The sources of those\n\
             # that replace the agent's hidden rule are admitted, too.\n\
             rules = {rules}\n\
             \n\
             # Files that say which of these rules are assigned to this host: a policy of the\n\
             # manager's, or what the API answers about a computer's rules. Without one, a\n\
             # policy among the files of rules says it.\n\
             assigned = {assigned}\n\
             \n\
             # Of several policies, the one that is meant: its name or ID.\n\
             assigned_policy = {assigned_policy}\n\
             \n\
             # Rules of a manager hold though nothing says that they are assigned.\n\
             all_rules = {all_rules}\n\
             \n\
             # Leave out rules that agent-fw cannot enforce (schedules, contexts), where that\n\
             # cannot open anything.\n\
             skip_unsupported = {skip_unsupported}\n\
             \n\
             # Enforce all rules of these files, as a whole firewall policy.\n\
             policy = {policy}\n\
             \n\
             # The rules of the vendor's engine are part of that policy: outgoing DNS and\n\
             # DHCP, incoming DHCP and ICMP type 3 code 4, all Force Allow with priority 4.\n\
             engine_rules = {engine_rules}\n\
             \n\
             # Incoming UDP that an Allow admits has to be a reply, as in the vendor's\n\
             # engine; the same for ICMP, as in agents up to 8.0.\n\
             udp_stateful = {udp_stateful}\n\
             icmp_stateful = {icmp_stateful}\n\
             \n\
             # Ignore fields of rules that agent-fw does not know.\n\
             lenient = {lenient}\n\
             \n"
        )
    }
}

/// A list of texts in TOML.
fn list(values: Vec<String>) -> String {
    let quoted = values.into_iter().map(|value| toml::Value::String(value).to_string());
    match quoted.collect::<Vec<_>>() {
        values if values.len() < 2 => format!("[{}]", values.concat()),
        values => format!("[\n    {},\n]", values.join(",\n    ")),
    }
}

/// The key that versions write which ask for consent.
const CONSENT: &str = "trust_file_modes = ";

/// How many digits a digest has.
const DIGEST_DIGITS: usize = 16;
/// The line at the end of a `policy.toml` that was written by hand.
const END: &str = "# End of policy";

/// Whether a `policy.toml` ends as it should: with the line that agent-fw writes last, all of it, or
/// with that of a person.
fn is_whole(text: &str) -> bool {
    let Some(last) = text.lines().map(str::trim_end).rfind(|line| !line.is_empty()) else {
        return false;
    };
    let is_digest = |written: &str| {
        written.len() == DIGEST_DIGITS && written.bytes().all(|b| b.is_ascii_hexdigit())
    };
    last == END || last.strip_prefix(DIGEST).is_some_and(is_digest)
}

/// Whether a `policy.toml` is no longer as agent-fw wrote it.
pub fn is_edited(text: &str) -> bool {
    let Some(line) = text.find(DIGEST) else { return true };
    let written = text[line + DIGEST.len()..].strip_suffix('\n');
    written != Some(digest(&text[..line]).as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Source;
    use crate::input::outbound::Outbound;

    fn configuration() -> Configuration {
        let sources = ["region:us-1", "192.0.2.0/24", "file:/tmp/a \"quoted\" name.list"];
        Configuration {
            allow_from: sources.iter().map(|text| text.parse().expect("a source")).collect(),
            except: vec!["192.0.2.7".parse().expect("a source")],
            allow_mac: vec!["02:00:00:00:00:01".parse().expect("a MAC address")],
            rules: vec![ListFile::Path("/etc/my rules.json".into())],
            policy: true,
            assigned: vec![ListFile::Path("/etc/policy.json".into())],
            assigned_policy: "Base \"Policy\"".to_owned(),
            all_rules: Some(false),
            skip_unsupported: true,
            engine_rules: Some(true),
            udp_stateful: Some(true),
            icmp_stateful: true,
            relay: vec!["10.0.0.0/8".parse().expect("a source")],
            outbound: Outbound::DefaultDeny,
            outbound_to: ["dns-server=192.0.2.53", "service-gateway=none"]
                .map(|text| text.parse().expect("a destination"))
                .into(),
            log: true,
            ..Configuration::default()
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let everyone = Configuration {
            allow_from: vec![Source::Any],
            all_rules: Some(false),
            engine_rules: Some(false),
            udp_stateful: Some(false),
            ..Configuration::default()
        };
        for configuration in [everyone, configuration()] {
            let text = configuration.to_toml();
            let read = Configuration::parse("policy.toml", &text).expect("written by us");
            assert_eq!(read, configuration);
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }

    #[test]
    fn a_change_by_hand_is_noticed() {
        let text = configuration().to_toml();
        assert!(!is_edited(&text));
        assert!(is_edited(&text.replace("port = 4118", "port = 4119")));
        assert!(is_edited(&format!("{text}log = false\n")));
        assert!(is_edited("port = 4118\n"));
    }

    #[test]
    fn faults_of_the_file_are_named_with_their_place() {
        for (text, expected) in [
            ("port = 70000\n", "policy.toml:1:8: "),
            ("\nallow_form = []\n", "policy.toml:2:1: unknown field `allow_form`"),
            (
                "\nallow_from = [\"192.0.2.0/40\"]\n",
                "policy.toml:2:14: `192.0.2.0/40`: column 11: ",
            ),
            ("otherwise = \"accept\"\n", "policy.toml:1:13: unknown variant `accept`"),
            ("port = 0\n", "port 0 is no port"),
            ("", "allow_from names no source"),
            ("allow_from = []\nlog = true\n", "allow_from names no source"),
            ("allow_from = [\"file:-\"]\n", "cannot be read at boot"),
            ("allow_from = [\"file:a.list\"]\n", "needs a path from the root"),
        ] {
            let error = Configuration::parse("policy.toml", text).expect_err(text);
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
