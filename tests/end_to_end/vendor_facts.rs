//! What the vendor's documents say about ports, names, directions and encryption: in every format that
//! prints it.

use crate::scene::install;
use crate::tests;
use agent_fw_lab::{Lab, agent_fw};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

tests![
    every_format_has_every_flow_that_the_documents_have,
    every_format_has_every_name_with_its_purpose,
    every_format_has_what_the_documents_say_beside_the_tables,
    the_three_directions_are_told_with_their_merits_and_demerits,
    install_says_which_direction_it_took_and_why,
    cipher_suites_are_listed_by_the_agents_version,
    regions_are_known_by_the_providers_names_and_without_subnets_by_name,
    two_regions_of_a_country_warn_of_each_other,
    the_catalogues_age_is_told_for_monitoring,
    the_agents_own_manager_is_offered_and_compared_with_the_policy,
    the_managers_names_are_asked_for_where_the_agent_needs_them,
    the_table_of_the_vendors_facts_names_tests_that_there_are,
];

/// Texts of the sources below a directory.
fn sources(directory: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path)?;
        }
    }
    Ok(text)
}

fn the_table_of_the_vendors_facts_names_tests_that_there_are() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("end_to_end");
    let root = tests.join("../..");
    let table = fs::read_to_string(root.join("docs/vendor.md"))?;
    let known = sources(&tests)?;
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| fact")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, _, named] = cells.as_slice() else { anyhow::bail!("three cells: {row}") };
        let mut count = 0;
        for name in named.split('`').skip(1).step_by(2) {
            let is_there = if name.contains("::") {
                let path = root.join("agent-fw/src").join(name.replace("::", "/"));
                fs::read_to_string(path.with_extension("rs"))?.contains("#[test]")
            } else if name.contains(['.', '/']) {
                tests.join(name).exists()
            } else {
                known.contains(&format!("\nfn {name}()"))
            };
            ensure!(is_there, "{name}: {row}");
            count += 1;
        }
        ensure!(count > 0, "without a test: {row}");
        rows += 1;
    }
    ensure!(rows > 30, "{rows} rows");
    Ok(())
}

/// The formats for people and for programs that have everything in a table.
const TABLES: [&str; 4] = ["table", "markdown", "json", "csv"];
/// Those of a security group, which are for hosts of a role.
const GROUPS: [&str; 2] = ["aws", "terraform"];

fn ports(words: &[&str]) -> Result<String> {
    agent_fw(["ports"].iter().chain(words))?.success()
}

/// A text on one line, without the marks of comments.
fn plain(text: &str) -> String {
    let text = text.replace("\n# ", " ").replace("\\\"", "\"");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// From, to, port, transport, protocol, and when it is needed: as the documents' tables have them.
type Fact = (&'static str, &'static str, u16, &'static str, &'static str, &'static str);

const NETWORK: &str = "Smart Protection Network";
const UPDATES: &str = "Update Server (Active Update)";
const SERVER: &str = "Smart Protection Server";
const DIRECTORY: &str = "Microsoft Active Directory";

const FLOWS: [Fact; 43] = [
    ("administrator", "DNS server", 53, "udp", "DNS", ""),
    ("administrator", "NTP server", 123, "udp", "NTP", ""),
    ("administrator", "manager", 443, "tcp", "HTTPS", ""),
    ("manager", "SIEM or syslog server", 514, "udp", "syslog", "if used"),
    ("manager", "SIEM or syslog server", 6514, "tcp", "syslog over TLS", "if used"),
    ("manager", "agent", 4118, "tcp", "HTTPS", ""),
    ("manager", "relay", 4118, "tcp", "HTTPS", ""),
    ("agent", "DNS server", 53, "udp", "DNS", ""),
    ("agent", "NTP server", 123, "udp", "NTP", ""),
    ("agent", "SIEM or syslog server", 514, "udp", "syslog", "if used"),
    ("agent", "manager", 443, "tcp", "HTTPS", ""),
    ("agent", "relay", 4122, "tcp", "HTTPS", "if used"),
    ("agent", NETWORK, 80, "tcp", "HTTP", ""),
    ("agent", NETWORK, 443, "tcp", "HTTPS", ""),
    ("agent", "Service Gateway", 8080, "tcp", "HTTP", "for file reputation alone"),
    ("agent", SERVER, 80, "tcp", "HTTP", "for file reputation alone"),
    ("agent", SERVER, 443, "tcp", "HTTPS", "for file reputation alone"),
    ("agent", SERVER, 5274, "tcp", "HTTP", "for web reputation alone"),
    ("agent", SERVER, 5275, "tcp", "HTTPS", "for web reputation alone"),
    ("agent", UPDATES, 80, "tcp", "HTTP", ""),
    ("agent", UPDATES, 443, "tcp", "HTTPS", ""),
    ("agent", "Download Center", 443, "tcp", "HTTPS", ""),
    ("relay", "relay", 4122, "tcp", "HTTPS", "if there are other relays"),
    ("relay", "localhost", 4123, "tcp", "HTTPS", "where a host firewall filters loopback"),
    ("relay", UPDATES, 80, "tcp", "HTTP", ""),
    ("relay", UPDATES, 443, "tcp", "HTTPS", ""),
    ("relay", "Download Center", 443, "tcp", "HTTPS", ""),
    ("data-center-gateway", "DNS server", 53, "udp", "DNS", ""),
    ("data-center-gateway", "NTP server", 123, "udp", "NTP", ""),
    ("data-center-gateway", "manager", 443, "tcp", "HTTPS", ""),
    ("data-center-gateway", "VMware vCenter", 443, "tcp", "HTTPS", ""),
    ("data-center-gateway", DIRECTORY, 389, "tcp", "LDAP, STARTTLS", ""),
    ("data-center-gateway", DIRECTORY, 389, "udp", "LDAP, STARTTLS", ""),
    ("data-center-gateway", DIRECTORY, 636, "tcp", "LDAPS", ""),
    ("data-center-gateway", DIRECTORY, 636, "udp", "LDAPS", ""),
    ("service-gateway", "DNS server", 53, "udp", "DNS", ""),
    ("service-gateway", "NTP server", 123, "udp", "NTP", ""),
    ("service-gateway", NETWORK, 80, "tcp", "HTTP", "file reputation"),
    ("service-gateway", NETWORK, 443, "tcp", "HTTPS", "file reputation"),
    ("api-client", "manager", 443, "tcp", "HTTPS", ""),
    // What an agent needs, a relay needs.
    ("relay", "DNS server", 53, "udp", "DNS", ""),
    ("relay", NETWORK, 443, "tcp", "HTTPS", ""),
    ("relay", "Service Gateway", 8080, "tcp", "HTTP", "for file reputation alone"),
];

/// How a format writes a flow.
fn written(format: &str, (from, to, port, transport, protocol, when): Fact, text: &str) -> bool {
    match format {
        "json" => {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            value["flows"].as_array().into_iter().flatten().any(|flow| {
                (&flow["from"], &flow["to"]) == (&from.into(), &to.into())
                    && flow["port"] == port
                    && flow["transport"] == transport
                    && flow["protocol"] == protocol
                    && flow["condition"].as_str().unwrap_or_default().contains(when)
            })
        }
        "csv" => {
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let port = port.to_string();
            reader.records().flatten().any(|row| {
                row.iter().take(5).eq([from, to, &port, transport, protocol])
                    && row.get(7).is_some_and(|found| found.contains(when))
            })
        }
        "markdown" => text.lines().any(|line| {
            line.starts_with(&format!("| {from} | {to} | {port}/{transport} | {protocol} |"))
                && line.contains(when)
        }),
        "table" => plain(text)
            .split(&format!("{from} {to} {port}/{transport} {protocol} addresses:"))
            .skip(1)
            .any(|rest| rest.contains(when)),
        _ => {
            let head = format!("{from} to {to}, {port}/{transport} {protocol}");
            plain(text).split(&head).skip(1).any(|rest| rest.contains(when))
        }
    }
}

fn every_format_has_every_flow_that_the_documents_have() -> Result<()> {
    for format in TABLES.into_iter().chain(GROUPS) {
        for fact in FLOWS {
            let (from, to, port, ..) = fact;
            if GROUPS.contains(&format) && from == "manager" {
                continue;
            }
            let text = ports(&["--region", "us-1", "--role", from, "--format", format])?;
            ensure!(written(format, fact, &text), "{format}: {from} to {to}, {port}: {text}");
        }
        // The test can fail: there is no such flow.
        let text = ports(&["--region", "us-1", "--role", "agent", "--format", format])?;
        let none = ("agent", "DNS server", 54, "udp", "DNS", "");
        ensure!(!written(format, none, &text), "{format} has a flow that there is not");
    }
    // In the whole deployment's tables they are all together.
    for format in TABLES {
        let text = ports(&["--format", format])?;
        for fact in &FLOWS[..40] {
            ensure!(written(format, *fact, &text), "{format}: {fact:?}");
        }
    }
    Ok(())
}

/// Role, name, and what it is for.
const NAMES: [(&str, &str, &str); 33] = [
    ("agent", "workload.de-1.cloudone.trendmicro.com", "the manager's console and API"),
    ("agent", "agents.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-001.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-002.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-003.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-004.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-005.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-006.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-007.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-008.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-009.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agents-010.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "agent-comm.workload.de-1.cloudone.trendmicro.com", "MQTT"),
    ("agent", "dsmim.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "relay.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "relay.deepsecurity.trendmicro.com", ""),
    ("agent", "xdr-resp-ioc.workload.de-1.cloudone.trendmicro.com", ""),
    ("agent", "files.trendmicro.com", "or a mirror on a local web server"),
    ("agent", "iaus.activeupdate.trendmicro.com", ""),
    ("agent", "iaus.trendmicro.com", ""),
    ("agent", "ipv6-iaus.trendmicro.com", ""),
    ("agent", "ipv6-iaus.activeupdate.trendmicro.com", ""),
    (
        "agent",
        "dsaas1100-en-census.trendmicro.com",
        "behaviour monitoring, predictive machine learning",
    ),
    ("agent", "ds200-en.fbs25.trendmicro.com", "agent 20.0 and later"),
    ("agent", "ds200-jp.fbs25.trendmicro.com", "agent 20.0 and later"),
    ("agent", "ds120-en.fbs25.trendmicro.com", "agent 12.0"),
    ("agent", "deepsecurity1100-en.fbs25.trendmicro.com", "agent 11.0"),
    ("agent", "deepsecurity1000-en.fbs20.trendmicro.com", "agent 10.0"),
    ("agent", "dsaas.icrc.trendmicro.com", "Smart Scan"),
    ("agent", "dsaas-en-f.trx.trendmicro.com", "machine learning"),
    ("agent", "dsaas-en-b.trx.trendmicro.com", "machine learning"),
    (
        "agent",
        "deepsecaas11-en.gfrbridge.trendmicro.com",
        "behaviour monitoring, predictive machine learning, process memory scan",
    ),
    ("agent", "dsaas.url.trendmicro.com", "web reputation"),
];

/// Whether a text has a name, and its purpose behind it.
fn has_name(text: &str, name: &str, purpose: &str) -> bool {
    let is_end =
        |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "-.".contains(c));
    plain(text).split(name).skip(1).any(|rest| {
        let near: String = rest.chars().take(160).collect();
        is_end(rest) && (purpose.is_empty() || near.contains(purpose))
    })
}

fn every_format_has_every_name_with_its_purpose() -> Result<()> {
    for format in TABLES.into_iter().chain(GROUPS) {
        for role in ["agent", "relay"] {
            let text = ports(&["--region", "de-1", "--role", role, "--format", format])?;
            for (_, name, purpose) in NAMES {
                ensure!(has_name(&text, name, purpose), "{format}: {name} ({purpose}): {text}");
            }
            ensure!(!has_name(&text, "agents-011.workload.de-1.cloudone.trendmicro.com", ""));
        }
        let text =
            ports(&["--region", "de-1", "--role", "data-center-gateway", "--format", format])?;
        for name in ["gateway", "gateway-control"] {
            let name = format!("{name}.workload.de-1.cloudone.trendmicro.com");
            ensure!(has_name(&text, &name, ""), "{format}: {text}");
        }
        // No source gives a name of what a Service Gateway asks.
        let text = ports(&["--region", "de-1", "--role", "service-gateway", "--format", format])?;
        ensure!(!text.contains("gfrbridge"), "{format}: {text}");
        // GovCloud has names of its own.
        let text = ports(&["--region", "gov-us-1", "--role", "agent", "--format", format])?;
        let domain = "workload.gov-us-1.cloudonegov.trendmicro.com";
        for name in ["agents-001", "agents-002"] {
            let name = format!("{name}.{domain}");
            ensure!(has_name(&text, &name, "only 001 and 002"), "{format}: {text}");
        }
        for name in ["agents.", "dsmim.", "relay.", "xdr-resp-gw.", ""] {
            ensure!(has_name(&text, &format!("{name}{domain}"), ""), "{format}: {name}: {text}");
        }
        ensure!(!text.contains("agents-003") && !text.contains("xdr-resp-ioc"), "{format}: {text}");
        let words = ["--region", "gov-us-1", "--role", "data-center-gateway", "--format", format];
        let gateway = ports(&words)?;
        ensure!(
            has_name(&gateway, "gateway.workload.us-1.cloudone.trendmicro.com", ""),
            "{format}"
        );
    }
    Ok(())
}

fn every_format_has_what_the_documents_say_beside_the_tables() -> Result<()> {
    for format in TABLES.into_iter().chain(GROUPS) {
        let text = plain(&ports(&["--region", "us-1", "--role", "relay", "--format", format])?);
        for part in [
            "443 must stay open to every address",
            "behind a web proxy",
            "1443",
            "replaces the Smart Protection Network for file and web reputation alone",
            "a mirror of the Download Center on a local web server",
            "source ports are ephemeral",
            "Replies must be allowed",
            "a default that may be changed",
            "something else has taken the port",
            "34.205.5.0/27",
            "18.97.19.0/27",
        ] {
            ensure!(text.contains(part), "{format}: `{part}`: {text}");
        }
    }
    Ok(())
}

fn the_three_directions_are_told_with_their_merits_and_demerits() -> Result<()> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = plain(&fs::read_to_string(readme)?);
    for part in ["vendor's default", "heartbeat", "agent-initiated", "manager-initiated"] {
        ensure!(readme.contains(part), "README: {part}");
    }
    for format in TABLES.into_iter().chain(GROUPS) {
        let text = plain(&ports(&["--region", "us-1", "--role", "agent", "--format", format])?);
        for part in [
            "agent-initiated: nothing inbound",
            "bidirectional: inbound TCP 4118 from the region's subnets",
            "manager-initiated: inbound TCP 4118 from the region's subnets",
            "strongly recommend not to change",
            "only with the next heartbeat",
            "a port has to be open inbound",
            "the vendor's default is agent-initiated",
        ] {
            ensure!(text.contains(part), "{format}: `{part}`: {text}");
        }
        let words = [
            "--region",
            "us-1",
            "--role",
            "agent",
            "--format",
            format,
            "--direction",
            "bidirectional",
        ];
        let said = plain(&ports(&words)?);
        ensure!(!said.contains("as no --direction says otherwise"), "{format}: {said}");
    }
    let said: Value = serde_json::from_str(&ports(&["--format", "json"])?)?;
    let all = said["directions"].as_array().context("directions")?;
    let taken: Vec<&Value> = all.iter().filter(|one| one["is_taken"] == true).collect();
    ensure!(
        all.len() == 3 && taken.len() == 1 && taken[0]["direction"] == "bidirectional",
        "{said:#}"
    );
    Ok(())
}

fn install_says_which_direction_it_took_and_why() -> Result<()> {
    Lab::run(|_| {
        let said = plain(&install(&["--allow-from", "region:de-1"])?);
        for part in
            ["direction: bidirectional", "The vendor's default is agent-initiated", "heartbeat"]
        {
            ensure!(said.contains(part), "{said}");
        }
        for direction in ["bidirectional", "manager-initiated"] {
            let said = install(&["--allow-from", "region:de-1", "--direction", direction])?;
            ensure!(!said.contains("direction: bidirectional"), "{said}");
        }
        let said = install(&["--direction", "agent-initiated"])?;
        ensure!(!said.contains("direction: bidirectional"), "{said}");
        Ok(())
    })
}

fn cipher_suites_are_listed_by_the_agents_version() -> Result<()> {
    let all = agent_fw(["tls", "list"])?.success()?;
    let json: Value = serde_json::from_str(&agent_fw(["tls", "list", "--json"])?.success()?)?;
    let list = json.as_array().context("a list")?;
    ensure!(list.len() == 11, "{json:#}");
    for of in list {
        let heading = of["agent"].as_str().context("a version")?;
        ensure!(all.contains(&format!("agent {heading}")), "{heading}: {all}");
        for suite in of["suites"].as_array().into_iter().flatten() {
            ensure!(all.contains(suite.as_str().unwrap_or("?")), "{suite}");
        }
    }
    let newest = agent_fw(["tls", "list", "--agent", "20"])?.success()?;
    let suites: Vec<&str> = newest.lines().filter(|line| line.starts_with("  TLS_")).collect();
    ensure!(
        suites
            == [
                "  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
                "  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                "  TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
                "  TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
            ],
        "{newest}"
    );
    let ten = agent_fw(["tls", "list", "--agent", "10.0"])?.success()?;
    ensure!(ten.contains("TLS 1.2") && !ten.contains("agent 9.5"), "{ten}");
    let refused = agent_fw(["tls", "list", "--agent", "7"])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("12.0 and 20"), "{refused}");
    Ok(())
}

fn regions_are_known_by_the_providers_names_and_without_subnets_by_name() -> Result<()> {
    for words in [
        &["regions", "show", "ap-northeast-1"][..],
        &["ports", "--region", "ap-northeast-1"],
        &["compile", "--allow-from", "region:ap-northeast-1"],
    ] {
        let said = agent_fw(words)?.success()?;
        ensure!(
            said.contains("35.75.131.96") || said.contains("35.75.131.64"),
            "{words:?}: {said}"
        );
    }
    // The GovCloud's names follow from the region, whatever it was called.
    let gov = ports(&["--region", "us-gov-west-1", "--role", "agent"])?;
    ensure!(gov.contains("xdr-resp-gw.workload.gov-us-1.cloudonegov"), "{gov}");
    for (name, place) in [
        ("za-1", "Cape Town"),
        ("id-1", "Jakarta"),
        ("br-1", "São Paulo"),
        ("sa-east-1", "São Paulo"),
    ] {
        for words in [
            &["regions", "show", name][..],
            &["ports", "--region", name],
            &["compile", "--allow-from", &format!("region:{name}")],
        ] {
            let refused = agent_fw(words)?;
            let said = plain(&refused.stderr);
            ensure!(refused.code == Some(2) && said.contains(place), "{refused}");
            ensure!(said.contains("not published") && said.contains("regions import"), "{refused}");
            ensure!(!said.contains("nearest"), "{refused}");
        }
    }
    Ok(())
}

fn two_regions_of_a_country_warn_of_each_other() -> Result<()> {
    for (region, other) in [("us-1", "trend-us-1"), ("trend-us-1", "us-1")] {
        let compiled = agent_fw(["compile", "--allow-from", &format!("region:{region}")])?;
        let said = plain(&compiled.stderr);
        ensure!(said.contains(&format!("region:{region} is not region:{other}")), "{compiled}");
        let shown = agent_fw(["regions", "show", region])?.success()?;
        ensure!(plain(&shown).contains(&format!("and those of {other} together")), "{shown}");
    }
    let both = ["compile", "--allow-from", "region:us-1", "--allow-from", "region:trend-us-1"];
    ensure!(!agent_fw(both)?.stderr.contains("is not region:"));
    ensure!(
        !agent_fw(["compile", "--allow-from", "region:de-1"])?.stderr.contains("is not region:")
    );
    Ok(())
}

fn the_catalogues_age_is_told_for_monitoring() -> Result<()> {
    Lab::run(|_| {
        let checked = agent_fw(["regions", "check", "--json"])?;
        let json: Value = serde_json::from_str(&checked.stdout)?;
        ensure!((json["good"] == true) == (checked.code == Some(0)), "{checked}");
        fs::create_dir_all("/etc/agent-fw")?;
        let own = "[lab]\nplace = 'here'\nsubnets = ['8.8.8.0/27']\ndomain = 'a.example'\n\
                   as_of = '2020-01-02'\nsource = 'our own'\n";
        fs::write("/etc/agent-fw/regions.toml", own)?;
        let checked = agent_fw(["regions", "check", "--json"])?;
        let json: Value = serde_json::from_str(&checked.stdout)?;
        let warnings = json["warnings"].as_array().context("warnings")?;
        let is_it = |warning: &Value| warning["region"] == "lab" && warning["about"] == "old";
        ensure!(checked.code == Some(1) && warnings.iter().any(is_it), "{json:#}");
        Ok(())
    })
}

/// An agent whose manager is there.
fn agent_of(lab: &Lab, host: &str) -> Result<()> {
    lab.overlay("/opt")?;
    fs::create_dir_all("/opt/ds_agent")?;
    let query = "/opt/ds_agent/dsa_query";
    let text = format!(
        "#!/bin/sh\n[ \"$*\" = '-c GetAgentStatus' ] || exit 1\n\
         echo 'AgentStatus.agentState: green'\necho 'AgentStatus.dsmUrl: https://{host}:443/'\n"
    );
    fs::write(query, text)?;
    fs::set_permissions(query, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A check of doctor's with these words: how it came out, and what was seen.
fn doctors(words: &[&str], name: &str) -> Result<Vec<(String, String)>> {
    let finished = agent_fw(["doctor", "--json"].iter().chain(words))?;
    let value: Value =
        serde_json::from_str(&finished.stdout).with_context(|| finished.to_string())?;
    let checks = value["checks"].as_array().context("checks")?.iter();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let found = checks.filter(|check| check["check"] == name);
    Ok(found.map(|check| (text(check, "health"), text(check, "seen"))).collect())
}

fn the_agents_own_manager_is_offered_and_compared_with_the_policy() -> Result<()> {
    const NAME: &str = "the agent's manager";
    Lab::run(|lab| {
        let without = agent_fw(["install", "--no-boot", "--untested"])?;
        ensure!(plain(&without.stderr).contains("--allow-from region:us-1,"), "{without}");
        agent_of(lab, "agents-007.workload.de-1.cloudone.trendmicro.com")?;
        let offered = agent_fw(["install", "--no-boot", "--untested"])?;
        let said = plain(&offered.stderr);
        ensure!(offered.code == Some(2), "{offered}");
        ensure!(
            said.contains("region:de-1 (where this host's agent has its manager)"),
            "{offered}"
        );
        for (source, health) in
            [("region:de-1", "good"), ("region:jp-1", "bad"), ("192.0.2.0/24", "note")]
        {
            install(&["--allow-from", source])?;
            let found = doctors(&[], NAME)?;
            ensure!(found.len() == 1 && found[0].0 == health, "{source}: {found:?}");
            ensure!(found[0].1.contains("in region de-1"), "{found:?}");
        }
        install(&["--direction", "agent-initiated"])?;
        ensure!(doctors(&[], NAME)?.iter().all(|(health, _)| health == "good"));
        agent_of(lab, "dsm.example.com")?;
        ensure!(
            doctors(&[], NAME)?
                .iter()
                .any(|(health, seen)| health == "note" && seen.contains("no known region"))
        );
        Ok(())
    })
}

fn the_managers_names_are_asked_for_where_the_agent_needs_them() -> Result<()> {
    const NAME: &str = "the manager's names";
    const GOV: &str = "agents.workload.gov-us-1.cloudonegov.trendmicro.com";
    Lab::run(|lab| {
        // Nobody answers, at once.
        fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        let known = |name: &str| {
            fs::write("/etc/hosts", format!("127.0.0.1 localhost\n192.0.2.1 {name}\n"))
        };
        known("nobody.example")?;
        install(&["--allow-from", "region:gov-us-1"])?;
        let found = doctors(&["--online"], NAME)?;
        ensure!(
            found.len() == 1 && found[0].0 == "bad" && found[0].1.starts_with(GOV),
            "{found:?}"
        );
        known(GOV)?;
        let found = doctors(&["--online"], NAME)?;
        ensure!(found.len() == 1 && found[0].0 == "good", "{found:?}");
        // Where the manager opens all connections, the agent needs no name.
        known("nobody.example")?;
        install(&["--allow-from", "region:gov-us-1", "--direction", "manager-initiated"])?;
        ensure!(doctors(&["--online"], NAME)?.iter().all(|(health, _)| health == "note"));
        // In agent-initiated mode no region is named: the agent tells, or who asks does.
        install(&["--direction", "agent-initiated"])?;
        let found = doctors(&["--online"], NAME)?;
        ensure!(
            found.len() == 1 && found[0].0 == "note" && found[0].1.contains("not known"),
            "{found:?}"
        );
        let found = doctors(&["--online", "--region", "gov-us-1"], NAME)?;
        ensure!(
            found.len() == 1 && found[0].0 == "bad" && found[0].1.starts_with(GOV),
            "{found:?}"
        );
        agent_of(lab, "agents-002.workload.au-1.cloudone.trendmicro.com")?;
        let found = doctors(&["--online"], NAME)?;
        ensure!(
            found.len() == 1 && found[0].0 == "bad" && found[0].1.contains("au-1"),
            "{found:?}"
        );
        known("agents-002.workload.au-1.cloudone.trendmicro.com")?;
        ensure!(doctors(&["--online"], NAME)?.iter().all(|(health, _)| health == "good"));
        ensure!(doctors(&[], NAME)?.is_empty(), "only where it is asked for");
        Ok(())
    })
}
