//! Flows as rules of a security group of EC2: as commands, and for Terraform.

use crate::input::connectivity::{Addresses, Flow, Role};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A rule of the group.
struct Rule<'a> {
    flow: &'a Flow,
    incoming: bool,
    peers: Peers,
}

/// The addresses outside of the group.
#[derive(PartialEq, Eq)]
enum Peers {
    Known(Vec<String>),
    /// The deployment's own: the user gives them under this name.
    Named(String),
}

impl Rule<'_> {
    fn is_same_as(&self, other: &Self) -> bool {
        let key = |rule: &Self| (rule.incoming, rule.flow.port, rule.flow.transport.clone());
        key(self) == key(other) && self.peers == other.peers
    }
}

/// The rules for hosts of `role`; what stays on the host needs none, and EC2 takes none twice.
fn rules(flows: &[Flow], role: Role) -> Vec<Rule<'_>> {
    let mut rules: Vec<Rule<'_>> = Vec::new();
    for flow in flows.iter().filter(|flow| flow.addresses != Addresses::Loopback) {
        if flow.comes_in_to(role) {
            rules.push(Rule { flow, incoming: true, peers: peers(flow, &flow.from.to_string()) });
        }
        if flow.from == role {
            rules.push(Rule { flow, incoming: false, peers: peers(flow, &flow.to) });
        }
    }
    let mut distinct: Vec<Rule<'_>> = Vec::new();
    for rule in rules {
        if !distinct.iter().any(|other| other.is_same_as(&rule)) {
            distinct.push(rule);
        }
    }
    distinct
}

fn peers(flow: &Flow, other: &str) -> Peers {
    match flow.addresses {
        Addresses::Any => Peers::Known(vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
        Addresses::Region => Peers::Known(flow.subnets.iter().map(ToString::to_string).collect()),
        Addresses::Own | Addresses::Loopback => Peers::Named(identifier(other)),
    }
}

/// A name that the shell and Terraform take: `dns_server`.
fn identifier(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    text.chars().map(plain).collect()
}

/// What a description of a rule may have, which is less than what a name can.
fn description(rule: &Rule<'_>) -> String {
    let Flow { from, to, protocol, .. } = rule.flow;
    let plain = |c: &char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;*".contains(*c);
    format!("{from} to {to}: {protocol}").chars().filter(plain).collect()
}

/// Names that the user gives addresses for, with when they are needed, if not always.
fn names<'a>(rules: &[Rule<'a>]) -> BTreeMap<String, Option<&'a str>> {
    let named = rules.iter().filter_map(|rule| match &rule.peers {
        Peers::Named(name) => Some((name.clone(), rule.flow.condition.as_deref())),
        Peers::Known(_) => None,
    });
    named.collect()
}

fn comments(notes: &[String]) -> String {
    let wrapped = notes.iter().map(|note| super::report::wrapped("# ", "# ", note) + "\n");
    wrapped.collect()
}

/// Commands for a shell.
pub(super) fn aws(flows: &[Flow], role: Role, notes: &[String]) -> String {
    let rules = rules(flows, role);
    let mut text = comments(notes);
    text += "#\n# Rules for the security group of hosts of role ";
    let _ = writeln!(text, "{role}. Set before:");
    text += "#   GROUP_ID: the group\n";
    let names = names(&rules);
    for (name, condition) in &names {
        let (name, condition) = (name.to_uppercase(), condition.unwrap_or("always needed"));
        let said = format!("{name}: prefixes of your own, {condition}");
        text += &(super::report::wrapped("#   ", "#     ", &said) + "\n");
    }
    text += "set -eu\n: \"${GROUP_ID:?the ID of the security group}\"\n";
    for name in names.iter().filter(|(_, condition)| condition.is_none()).map(|(name, _)| name) {
        let _ = writeln!(text, ": \"${{{}?prefixes; empty for none}}\"", name.to_uppercase());
    }
    for rule in &rules {
        let Flow { port, transport, .. } = rule.flow;
        let way = if rule.incoming { "ingress" } else { "egress" };
        let peers = match &rule.peers {
            Peers::Known(prefixes) => prefixes.join(" "),
            Peers::Named(name) => format!("${{{}:-}}", name.to_uppercase()),
        };
        let description = description(rule);
        let _ = write!(
            text,
            "\n# {description}\n\
             for prefix in {peers}; do\n\
             \x20 case $prefix in\n\
             \x20 *:*) range=\"Ipv6Ranges=[{{CidrIpv6=$prefix,Description='{description}'}}]\" ;;\n\
             \x20 *) range=\"IpRanges=[{{CidrIp=$prefix,Description='{description}'}}]\" ;;\n\
             \x20 esac\n\
             \x20 aws ec2 authorize-security-group-{way} --group-id \"$GROUP_ID\" \\\n\
             \x20   --ip-permissions \"IpProtocol={transport},FromPort={port},ToPort={port},$range\"\n\
             done\n"
        );
    }
    text.truncate(text.trim_end().len());
    text
}

/// Resources for Terraform's provider for AWS.
pub(super) fn terraform(flows: &[Flow], role: Role, notes: &[String]) -> String {
    let rules = rules(flows, role);
    let mut text = comments(notes);
    let _ = write!(
        text,
        "\nvariable \"security_group_id\" {{\n  type        = string\n  \
         description = \"The security group of hosts of role {role}\"\n}}\n"
    );
    for (name, condition) in names(&rules) {
        // What is always needed has no default, so that it is not forgotten.
        let default = if condition.is_some() { "  default     = []\n" } else { "" };
        let condition = condition.unwrap_or("always needed");
        let _ = write!(
            text,
            "\nvariable \"{name}\" {{\n  type        = set(string)\n  \
             description = \"Prefixes of your own, {condition}\"\n{default}}}\n"
        );
    }
    for rule in &rules {
        let Flow { port, transport, .. } = rule.flow;
        let way = if rule.incoming { "ingress" } else { "egress" };
        let other = if rule.incoming { rule.flow.from.to_string() } else { rule.flow.to.clone() };
        let name = format!("{}_{port}_{transport}", identifier(&other));
        let peers = match &rule.peers {
            Peers::Known(prefixes) => format!("toset([\"{}\"])", prefixes.join("\", \"")),
            Peers::Named(name) => format!("var.{name}"),
        };
        let _ = write!(
            text,
            "\nresource \"aws_vpc_security_group_{way}_rule\" \"{name}\" {{\n\
             \x20 for_each          = {peers}\n\
             \x20 security_group_id = var.security_group_id\n\
             \x20 description       = \"{}\"\n\
             \x20 ip_protocol       = \"{transport}\"\n\
             \x20 from_port         = {port}\n\
             \x20 to_port           = {port}\n\
             \x20 cidr_ipv4         = strcontains(each.value, \":\") ? null : each.value\n\
             \x20 cidr_ipv6         = strcontains(each.value, \":\") ? each.value : null\n\
             }}\n",
            description(rule)
        );
    }
    text.truncate(text.trim_end().len());
    text
}
