//! The counters of rules: by a name that is the rule's own, whatever stands before or behind it.

use crate::model::firewall::{Firewall, Rule};
use crate::nft::identifier;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Characters of a rule's name that its counter's name shows.
const SHOWN: usize = 60;

impl Rule {
    /// The name of the rule's counter: as much of its own name as nftables can write, and a digest of
    /// all that the rule says. Two rules that change places keep their counts.
    pub fn counter_name(&self) -> String {
        let Self { name, action, priority, direction, criteria } = self;
        let mut digest = Digesting(Sha256::new());
        // Writing to a digest cannot fail.
        let _ = write!(digest, "{direction} {priority} {action} {name:?} {criteria:?}");
        let digest = digest.0.finalize();
        let shown: String = identifier(name).chars().take(SHOWN).collect();
        let [a, b, c, d, ..] = *digest else { return format!("rule_{shown}") };
        format!("rule_{shown}_{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

impl Firewall {
    /// The rule that has the counter of this name.
    pub fn rule_of_counter(&self, counter: &str) -> Option<&Rule> {
        self.rules().iter().find(|rule| {
            // Rules that say the same are numbered.
            let rest = counter.strip_prefix(&rule.counter_name());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        })
    }
}

/// A text that is digested as it is written.
struct Digesting(Sha256);

impl std::fmt::Write for Digesting {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;
    use crate::model::rule;
    use crate::model::rule::hidden_rule;

    fn named(name: &str, port: u16) -> Rule {
        let rule = rule::Rule { name: name.to_owned(), ..hidden_rule(Port(port)) };
        Rule::new(&rule).expect("a rule")
    }

    #[test]
    fn rules_with_names_that_nftables_cannot_write_have_counters_of_their_own() {
        let names = ["ウェブ", "踏み台", "web"].map(|name| named(name, 443).counter_name());
        assert!(names[0] != names[1] && names[0].starts_with("rule____"), "{names:?}");
        assert!(names[2].starts_with("rule_web_"), "{names:?}");
        assert!(names.iter().all(|name| name.is_ascii()), "{names:?}");
    }

    #[test]
    fn a_name_is_the_rules_own_and_another_rules_is_another() {
        assert_eq!(named("a", 443).counter_name(), named("a", 443).counter_name());
        assert_ne!(named("a", 443).counter_name(), named("a", 444).counter_name());
    }
}
