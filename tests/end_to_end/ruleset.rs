//! The ruleset as text and over netlink.

use crate::scene::install;
use crate::tests;
use agent_fw::model::Range;
use agent_fw::model::TableName;
use agent_fw::nft::{Count, Counter, Elements, Image, Nftables, Program, Set};
use agent_fw_lab::{Lab, agent_fw, feed, run};
use anyhow::{Result, ensure};
use std::fs;
use std::net::Ipv4Addr;

tests![
    both_roads_leave_the_kernel_with_the_same_table,
    compiling_needs_neither_root_nor_a_kernel_with_nf_tables,
    an_error_of_the_kernel_names_the_element_or_rule_and_leaves_the_old_table,
];

/// Flags that lead to every form of ruleset.
const FORMS: &[&[&str]] = &[
    &["--allow-from", "region:us-1"],
    &["--allow-from", "region:us-1", "--log", "--early-drop"],
    &["--allow-from", "region:us-1", "--otherwise", "continue"],
    &["--allow-from", "2001:db8::/32", "--allow-from", "192.0.2.1-192.0.2.9", "--port", "1"],
    &["--allow-from", "any"],
    &["--allow-from", "0.0.0.0/0", "--allow-wide", "--early-drop"],
    &["--allow-from", "::/0", "--allow-from", "255.255.255.255", "--allow-wide"],
    &["--allow-mac", "02:00:00:00:00:01"],
    &["--allow-mac", "ff:ff:ff:ff:ff:ff", "--allow-mac", "00-00-00-00-00-00", "--early-drop"],
    &["--allow-mac", "02:00:00:00:00:01", "--allow-from", "region:gb-1", "--early-drop"],
    &["--direction", "agent-initiated", "--early-drop", "--log"],
    &["--allow-from", "file:/run/a \"b\".list", "--allow-from", "region:us-1"],
    &["--allow-from", "file:/run/many.list", "--allow-from", "region:us-1", "--early-drop"],
    &["--allow-from", "file:/run/many.list", "--allow-mac", "02:00:00:00:00:01"],
];

fn both_roads_leave_the_kernel_with_the_same_table() -> Result<()> {
    Lab::run(|_| {
        fs::write("/run/a \"b\".list", "192.0.2.0/24\n")?;
        let many: String = (0..9_000_u32)
            .map(|n| format!("12.{}.{}.0/30\n2001:db8:{n:x}::/64\n", n >> 8, n & 255))
            .collect();
        fs::write("/run/many.list", many)?;
        for flags in FORMS {
            install(flags)?;
            run(["nft", "flush", "ruleset"])?;
            agent_fw(["apply"])?.success()?;
            let over_netlink = run(["nft", "list", "table", "inet", "agent_fw"])?;
            let text = agent_fw(["compile", "--format", "nft"].iter().chain(*flags))?.success()?;
            run(["nft", "flush", "ruleset"])?;
            feed(["nft", "--check", "-f", "-"], &text)?;
            feed(["nft", "-f", "-"], &text)?;
            let from_text = run(["nft", "list", "table", "inet", "agent_fw"])?;
            ensure!(over_netlink == from_text, "{flags:?}:\n{over_netlink}\n{from_text}");
            // Reading back finds no difference either, whichever way it came.
            let dry = agent_fw(["install", "--no-boot", "--dry-run"].iter().chain(*flags))?;
            ensure!(dry.code == Some(0), "{flags:?}: {dry}");
            // And the text replaces itself.
            feed(["nft", "-f", "-"], &text)?;
            ensure!(run(["nft", "list", "table", "inet", "agent_fw"])? == from_text);
        }
        Ok(())
    })
}

fn compiling_needs_neither_root_nor_a_kernel_with_nf_tables() -> Result<()> {
    Lab::run(|_| {
        for format in ["nft", "json"] {
            let flags = ["compile", "--allow-from", "region:us-1", "--format", format];
            let program = agent_fw_lab::agent_fw_path();
            let nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--no-new-privs"];
            let words = nobody.iter().map(std::ffi::OsStr::new);
            let words = words.chain([program.as_os_str()]);
            let compiled = run(words.chain(flags.iter().map(AsRef::as_ref)))?;
            ensure!(compiled.contains("34.205.5.0/27"), "{compiled}");
        }
        ensure!(run(["nft", "list", "ruleset"])?.is_empty(), "compile changed the kernel");
        Ok(())
    })
}

/// An image that agent-fw itself never makes: its ranges overlap.
fn faulty_image(rules: Vec<Vec<agent_fw::nft::Expression>>) -> Image {
    let range = |first: [u8; 4], last: [u8; 4]| {
        Range::new(Ipv4Addr::from(first), last.into()).expect("in order")
    };
    let mut ranges: Vec<_> = (0..5000)
        .map(|n: u16| n.to_be_bytes())
        .map(|[a, b]| range([10, a, b, 0], [10, a, b, 9]))
        .collect();
    if rules.is_empty() {
        ranges.push(range([10, 9, 9, 5], [10, 9, 9, 20]));
    }
    let rules = rules
        .into_iter()
        .map(|expressions| Program { expressions, comment: String::new() })
        .collect();
    let counter = Counter { name: "seen".into(), comment: String::new(), count: Count::default() };
    Image {
        name: TableName::Gate,
        comment: "faulty".into(),
        counters: vec![counter],
        sets: vec![Set { name: "sources".into(), elements: Elements::V4(ranges) }],
        chains: vec![agent_fw::nft::Chain { name: "gate".into(), base: None, rules }],
    }
}

fn an_error_of_the_kernel_names_the_element_or_rule_and_leaves_the_old_table() -> Result<()> {
    use agent_fw::nft::Expression;
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        let good = vec![Expression::Accept];
        let missing_set = vec![Expression::Lookup { set: "nowhere".into() }, Expression::Drop];
        for (rules, expected) in [
            (vec![], "element 10.9.9.5-10.9.9.20 of set sources"),
            (vec![good, missing_set], "rule 2 of chain gate"),
        ] {
            let image = faulty_image(rules);
            let error = Nftables::open()?
                .replace(std::slice::from_ref(&image))
                .expect_err("the kernel refuses it");
            ensure!(error.to_string().contains(expected), "`{expected}` is not in: {error}");
            ensure!(run(["nft", "--handle", "list", "ruleset"])? == before);
        }
        Ok(())
    })
}
