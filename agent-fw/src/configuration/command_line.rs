//! The command that installs a configuration: what advice names, so that it can be typed as it is.

use crate::configuration::Configuration;
use crate::input::outbound::Outbound;
use std::fmt::Display;

impl Configuration {
    /// `agent-fw install` with the flags that say the same, for a shell. Default values are left
    /// out.
    pub fn install_command(&self) -> String {
        let quoted = self.install_arguments().into_iter().map(|word| quoted(&word));
        let words: Vec<String> = quoted.collect();
        format!("agent-fw install {}", words.join(" "))
    }

    fn install_arguments(&self) -> Vec<String> {
        let default = Self::default();
        let Self { backend, xdp_mode, port, direction, otherwise, outbound, .. } = self;
        let mut line = Arguments::default();
        line.values("--allow-from", &self.allow_from);
        line.values("--except", &self.except);
        line.values("--allow-mac", &self.allow_mac);
        line.values("--rules", &self.rules);
        line.values("--assigned", &self.assigned);
        let named = Some(&self.assigned_policy).filter(|name| !name.is_empty());
        line.values("--assigned-policy", named);
        line.flag("--all-rules", !self.rules.is_empty() && self.all_rules != Some(false));
        line.flag("--skip-unsupported", self.skip_unsupported);
        line.flag("--policy", self.policy);
        line.flag("--no-engine-rules", self.policy && !self.enforces_engine_rules());
        line.flag("--no-stateful-udp", self.policy && !self.stateful().udp);
        line.flag("--stateful-icmp", self.stateful().icmp);
        line.flag("--lenient", self.lenient && !self.rules.is_empty());
        line.values("--relay", &self.relay);
        line.flag("--restrict-outbound", *outbound == Outbound::NeedsOpen);
        line.flag("--default-deny-outbound", *outbound == Outbound::DefaultDeny);
        line.values("--outbound-to", &self.outbound_to);
        line.values("--port", (*port != default.port).then_some(port));
        line.values("--direction", (*direction != default.direction).then_some(direction));
        line.values("--otherwise", (*otherwise != default.otherwise).then_some(otherwise));
        line.flag("--early-drop", self.early_drop);
        line.flag("--log", self.log);
        line.values("--backend", (*backend != default.backend).then_some(backend));
        line.values("--interface", &self.interfaces);
        line.values("--xdp-mode", (*xdp_mode != default.xdp_mode).then_some(xdp_mode));
        line.flag("--allow-wide", self.allow_wide);
        line.flag("--trust-file-modes", self.trust_file_modes);
        line.0
    }
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str, is_set: bool) {
        self.0.extend(is_set.then(|| name.to_owned()));
    }

    /// The flag once for each value.
    fn values<T: Display>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        for value in values {
            self.0.extend([name.to_owned(), value.to_string()]);
        }
    }
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        // As `$'…'` reads it; a terminal must not.
        return format!("$'{}'", word.escape_default());
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;
    use crate::configuration::Configuration;
    use crate::input::ListFile;
    use crate::input::options::{Backend, Mode};

    #[test]
    fn what_is_not_said_by_default_is_named() {
        let sources = ["region:us-1", "file:/etc/my hosts"];
        let configuration = Configuration {
            allow_from: sources.map(|text| text.parse().expect("a source")).into(),
            rules: vec![ListFile::Path("/etc/rules.json".into())],
            policy: true,
            engine_rules: Some(false),
            all_rules: Some(false),
            udp_stateful: Some(true),
            port: 4200,
            direction: Mode::ManagerInitiated,
            backend: Backend::Both,
            interfaces: vec!["eth0".to_owned()],
            ..Configuration::default()
        };
        assert_eq!(
            configuration.install_command(),
            "agent-fw install --allow-from region:us-1 --allow-from 'file:/etc/my hosts' \
             --rules /etc/rules.json --policy --no-engine-rules --port 4200 \
             --direction manager-initiated --backend both --interface eth0"
        );
    }

    #[test]
    fn a_shell_takes_a_word_as_it_is() {
        assert_eq!(quoted("region:us-1"), "region:us-1");
        assert_eq!(quoted("--allow-from=region:us-1"), "--allow-from=region:us-1");
        assert_eq!(quoted("/etc/my rules.json"), "'/etc/my rules.json'");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
