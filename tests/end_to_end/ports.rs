//! `agent-fw ports`: who must reach whom, in forms that other programs read.

use crate::tests;
use agent_fw_lab::{agent_fw, feed};
use anyhow::{Context as _, Result, ensure};
use hcl::structure::{Block, Body};
use serde_json::Value;

tests![
    every_form_of_the_ports_says_that_443_must_not_be_narrowed,
    terraform_reads_the_rules_of_a_security_group,
    a_shell_reads_the_commands_for_a_security_group,
    tables_of_ports_have_as_many_columns_in_every_row,
    in_agent_initiated_mode_no_port_comes_in_to_an_agent,
    what_the_ports_command_cannot_answer_is_refused,
];

const CAVEAT: &str = "443 must stay open to every address";
const SUBNETS: [&str; 2] = ["34.205.5.0/27", "18.97.19.0/27"];

fn ports(words: &[&str]) -> Result<String> {
    agent_fw(["ports"].iter().chain(words))?.success()
}

fn every_form_of_the_ports_says_that_443_must_not_be_narrowed() -> Result<()> {
    for format in ["table", "markdown", "json", "csv", "aws", "terraform"] {
        for role in ["agent", "relay"] {
            let said = ports(&["--region", "us-1", "--role", role, "--format", format])?;
            let plain = said.replace("\n# ", " ").replace('\n', " ");
            let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(plain.contains(CAVEAT), "{format}: {said}");
            ensure!(SUBNETS.iter().all(|subnet| said.contains(subnet)), "{format}: {said}");
        }
    }
    Ok(())
}

/// The attribute of a block, as text.
fn attribute(block: &Block, name: &str) -> Option<String> {
    let attribute = block.body.attributes().find(|attribute| attribute.key.as_str() == name)?;
    hcl::to_string(&attribute.expr).ok().or_else(|| Some(format!("{:?}", attribute.expr)))
}

fn terraform_reads_the_rules_of_a_security_group() -> Result<()> {
    let text = ports(&["--region", "us-1", "--format", "terraform"])?;
    let body: Body = hcl::parse(&text).with_context(|| text.clone())?;
    let resources: Vec<&Block> =
        body.blocks().filter(|block| block.identifier.as_str() == "resource").collect();
    let of = |kind: &str, port: &str| -> Vec<&Block> {
        let kind = format!("aws_vpc_security_group_{kind}_rule");
        let fits = |block: &&&Block| {
            block.labels[0].as_str() == kind
                && attribute(block, "from_port").is_some_and(|found| found.contains(port))
        };
        resources.iter().filter(fits).copied().collect()
    };
    let ingress = of("ingress", "4118");
    ensure!(ingress.len() == 1, "{text}");
    let peers = attribute(ingress[0], "for_each").context("for_each")?;
    ensure!(SUBNETS.iter().all(|subnet| peers.contains(subnet)), "{peers}");
    let to_manager = of("egress", "443");
    ensure!(!to_manager.is_empty(), "{text}");
    let open = |block: &&Block| {
        attribute(block, "for_each")
            .is_some_and(|peers| peers.contains("0.0.0.0/0") && peers.contains("::/0"))
    };
    ensure!(to_manager.into_iter().any(|block| open(&block)), "{text}");
    // No two of a kind have the same name, or Terraform would refuse all.
    let mut names: Vec<String> = resources
        .iter()
        .map(|block| format!("{} {}", block.labels[0].as_str(), block.labels[1].as_str()))
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    ensure!(names.len() == count, "{names:?}");
    Ok(())
}

/// The shell is the real one; in the place of `aws` stands a function that prints its arguments.
fn a_shell_reads_the_commands_for_a_security_group() -> Result<()> {
    let script = ports(&["--region", "us-1", "--role", "relay", "--format", "aws"])?;
    let shown = format!(
        "aws() {{ for word in \"$@\"; do printf '%s|' \"$word\"; done; echo; }}\n\
         GROUP_ID=sg-0123 DNS_SERVER=10.0.0.53/32 NTP_SERVER= AGENT='10.0.0.0/8 2001:db8::/32'\n{script}\n"
    );
    let called = feed(["sh", "-s"], &shown)?;
    let lines: Vec<&str> = called.lines().collect();
    let expect = |part: &str| {
        let found = lines.iter().any(|line| line.contains(part));
        ensure!(found, "`{part}` is not in {called}");
        Ok(())
    };
    for subnet in SUBNETS {
        expect(&format!(
            "ec2|authorize-security-group-ingress|--group-id|sg-0123|--ip-permissions|\
             IpProtocol=tcp,FromPort=4118,ToPort=4118,IpRanges=[{{CidrIp={subnet},"
        ))?;
    }
    expect("ToPort=443,IpRanges=[{CidrIp=0.0.0.0/0,")?;
    expect("ToPort=443,Ipv6Ranges=[{CidrIpv6=::/0,")?;
    expect(
        "authorize-security-group-ingress|--group-id|sg-0123|--ip-permissions|IpProtocol=tcp,FromPort=4122,ToPort=4122,IpRanges=[{CidrIp=10.0.0.0/8,",
    )?;
    expect("FromPort=4122,ToPort=4122,Ipv6Ranges=[{CidrIpv6=2001:db8::/32,")?;
    let mut permissions: Vec<String> = lines
        .iter()
        .filter_map(|line| line.split(",Description").next())
        .map(str::to_owned)
        .collect();
    permissions.sort();
    permissions.dedup();
    ensure!(permissions.len() == lines.len(), "EC2 takes no rule twice: {called}");
    ensure!(!called.contains("4123"), "what stays on loopback needs no rule: {called}");
    Ok(())
}

fn tables_of_ports_have_as_many_columns_in_every_row() -> Result<()> {
    let text = ports(&["--region", "gov-us-1", "--format", "csv"])?;
    // The reader refuses rows of another length.
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows = reader.records().collect::<Result<Vec<_>, _>>().context(text)?;
    ensure!(rows.len() > 30, "{} rows", rows.len());
    let text = ports(&["--region", "gov-us-1", "--format", "markdown"])?;
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    ensure!(rows.iter().all(|row| row.matches('|').count() == 8), "{text}");
    let table = ports(&["--region", "gov-us-1"])?;
    ensure!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    Ok(())
}

fn in_agent_initiated_mode_no_port_comes_in_to_an_agent() -> Result<()> {
    for (direction, expected) in
        [("agent-initiated", 0), ("manager-initiated", 1), ("bidirectional", 1)]
    {
        let words = ["--role", "agent", "--direction", direction, "--format", "json"];
        let said: Value = serde_json::from_str(&ports(&words)?)?;
        let flows = said["flows"].as_array().context("flows")?;
        let incoming = flows.iter().filter(|flow| flow["to"] == "agent").count();
        ensure!(incoming == expected, "{direction}: {incoming} in {said:#}");
    }
    Ok(())
}

fn what_the_ports_command_cannot_answer_is_refused() -> Result<()> {
    for (words, expected) in [
        (&["--region", "us1"][..], "the nearest names are us-1"),
        (&["--format", "aws"], "--region"),
        (&["--format", "terraform", "--region", "us-1", "--role", "manager"], "the vendor's"),
        (&["--role", "printer"], "possible values"),
    ] {
        let refused = agent_fw(["ports"].iter().chain(words))?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(expected), "{refused}");
    }
    Ok(())
}
