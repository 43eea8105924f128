//! Installing, applying and removing whole policies.

use super::golden::{names, rules};
use crate::scene::{install, status, try_install};
use crate::tests;
use agent_fw_lab::{Lab, agent_fw, feed, run};
use anyhow::{Result, ensure};
use std::fs;

tests![
    both_roads_leave_the_kernel_with_the_same_tables_of_a_policy,
    a_policy_that_is_installed_without_its_flag_goes_with_its_tables,
    what_is_altered_or_missing_of_a_policy_is_told_and_put_back,
    a_policy_that_cannot_be_compiled_leaves_the_one_before_in_force,
    a_policy_that_the_kernel_refuses_is_not_half_in_force,
];

/// The case that has tables for IP and for ARP.
const BOTH: &str = "06-allow-arp-and-watch";

fn tables() -> Result<String> {
    run(["nft", "list", "ruleset"])
}

fn both_roads_leave_the_kernel_with_the_same_tables_of_a_policy() -> Result<()> {
    Lab::run(|_| {
        for case in names()?.iter().filter(|case| !case.contains("refused")) {
            let file = rules(case)?;
            for log in [&[][..], &["--log"]] {
                let words = [&["--rules", &file, "--policy"], log].concat();
                install(&words)?;
                run(["nft", "flush", "ruleset"])?;
                agent_fw(["apply"])?.success()?;
                let over_netlink = tables()?;
                let text = agent_fw(["compile"].iter().chain(&words))?.success()?;
                run(["nft", "flush", "ruleset"])?;
                feed(["nft", "-f", "-"], &text)?;
                ensure!(tables()? == over_netlink, "{case}:\n{}\n{over_netlink}", tables()?);
                let dry = agent_fw(["install", "--no-boot", "--dry-run"].iter().chain(&words))?;
                ensure!(dry.code == Some(0), "{case}: {dry}");
            }
        }
        Ok(())
    })
}

fn a_policy_that_is_installed_without_its_flag_goes_with_its_tables() -> Result<()> {
    Lab::run(|_| {
        let file = rules(BOTH)?;
        install(&["--rules", &file, "--policy"])?;
        let both = run(["nft", "list", "tables"])?;
        ensure!(both.matches("agent_fw_policy").count() == 2, "{both}");
        install(&["--rules", &file])?;
        let one = run(["nft", "list", "tables"])?;
        ensure!(one.trim() == "table inet agent_fw", "{one}");
        install(&["--rules", &file, "--policy"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(tables()?.is_empty(), "{}", tables()?);
        Ok(())
    })
}

fn what_is_altered_or_missing_of_a_policy_is_told_and_put_back() -> Result<()> {
    Lab::run(|_| {
        install(&["--rules", &rules(BOTH)?, "--policy"])?;
        let before = tables()?;
        for (change, said) in [
            ("delete table inet agent_fw_policy", "the table inet agent_fw_policy is not there"),
            ("delete table arp agent_fw_policy", "the table arp agent_fw_policy is not there"),
            ("flush chain inet agent_fw_policy incoming", "missing: rule 1 of chain incoming"),
            ("add rule arp agent_fw_policy outgoing drop", "rule 2 of chain outgoing"),
            ("insert rule inet agent_fw_policy outgoing ct state new reject", "chain outgoing"),
            ("add set inet agent_fw_policy more { type ipv4_addr; }", "set more"),
        ] {
            feed(["nft", "-f", "-"], &format!("{change}\n"))?;
            let (told, code) = status()?;
            ensure!(code == Some(1), "{change}: status ends with {code:?}");
            let differences = told["differences"].to_string();
            ensure!(differences.contains(said), "{change}: {differences}");
            let verify = agent_fw(["verify"])?;
            ensure!(verify.code == Some(1), "{change}: {verify}");
            agent_fw(["apply"])?.success()?;
            ensure!(agent_fw(["verify"])?.code == Some(0), "{change} was not put back");
            let now = tables()?;
            ensure!(now.lines().count() == before.lines().count(), "{change}: {now}");
        }
        Ok(())
    })
}

fn a_policy_that_cannot_be_compiled_leaves_the_one_before_in_force() -> Result<()> {
    Lab::run(|_| {
        fs::copy(rules(BOTH)?, "/run/rules.json")?;
        install(&["--rules", "/run/rules.json", "--policy"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        for case in names()?.iter().filter(|case| case.contains("refused")) {
            let refused = try_install(&["--rules", &rules(case)?, "--policy"])?;
            ensure!(refused.code == Some(2), "{case}: {refused}");
            fs::copy(rules(case)?, "/run/rules.json")?;
            let refused = agent_fw(["apply"])?;
            ensure!(refused.code == Some(2), "{case}: {refused}");
            ensure!(run(["nft", "--handle", "list", "ruleset"])? == before, "{case}");
        }
        // At boot, the last policy that could be compiled is enforced, with all of its tables.
        run(["nft", "flush", "ruleset"])?;
        ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
        let tables = run(["nft", "list", "tables"])?;
        ensure!(tables.lines().count() == 3, "{tables}");
        Ok(())
    })
}

fn a_policy_that_the_kernel_refuses_is_not_half_in_force() -> Result<()> {
    Lab::run(|_| {
        let file = rules(BOTH)?;
        install(&["--rules", &file])?;
        let before = run(["nft", "list", "ruleset"])?;
        // A full /etc: the last step fails when the tables are there already.
        let directory = "/etc/agent-fw/policy.toml.new";
        fs::create_dir(directory)?;
        fs::write(format!("{directory}/in-the-way"), "")?;
        let failed = try_install(&["--rules", &file, "--policy"])?;
        ensure!(failed.code == Some(3), "{failed}");
        ensure!(run(["nft", "list", "ruleset"])? == before, "something is left of the policy");
        Ok(())
    })
}
