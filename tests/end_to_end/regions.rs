//! Regions change: what a file would change, taking it over, and who gets through then.

use crate::scene::{AGENT, admitted, expect, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw};
use anyhow::{Result, ensure};
use std::fs;

tests![
    an_imported_region_admits_its_new_subnets_and_counters_go_on,
    a_difference_is_shown_and_nothing_is_changed,
    a_faulty_file_of_regions_changes_nothing,
    doubtful_regions_are_warned_of,
];

const OVERRIDES: &str = "/etc/agent-fw/regions.toml";

fn an_imported_region_admits_its_new_subnets_and_counters_go_on() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "18.97.19.1"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.32"])?;
        let counted = admitted(&status()?.0, "region us-1");
        fs::write(OVERRIDES, "# ours\n")?;
        fs::write("/run/new.list", "34.205.5.0/26 # twice as many\n")?;
        let words = ["regions", "import", "/run/new.list", "--region", "us-1"];
        agent_fw(words.iter().chain(&["--source", "a letter", "--as-of", "2026-05-06"]))?
            .success()?;
        let text = fs::read_to_string(OVERRIDES)?;
        ensure!(text.starts_with("# ours\n") && text.contains("a letter"), "{text}");
        // Not before it is applied.
        expect(&manager, Outcome::Silent, &["34.205.5.33"])?;
        agent_fw(["apply"])?.success()?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "34.205.5.63"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.64", "18.97.19.1"])?;
        let after = admitted(&status()?.0, "region us-1");
        ensure!(after >= counted + 8, "{counted} packets before, {after} after");
        Ok(())
    })
}

fn a_difference_is_shown_and_nothing_is_changed() -> Result<()> {
    Lab::run(|_| {
        let all = agent_fw(["regions", "list", "--json"])?.success()?;
        fs::write("/run/all.json", &all)?;
        let same = agent_fw(["regions", "diff", "/run/all.json"])?;
        ensure!(same.code == Some(0), "{same}");
        fs::write("/run/all.json", all.replace("18.97.19.0/27", "18.97.20.0/27"))?;
        let differs = agent_fw(["regions", "diff", "/run/all.json"])?;
        ensure!(differs.code == Some(1), "{differs}");
        let expected = "us-1\n  + 18.97.20.0/27\n  - 18.97.19.0/27\n";
        ensure!(differs.stdout == expected, "{differs}");
        ensure!(!fs::exists(OVERRIDES)?);
        Ok(())
    })
}

fn a_faulty_file_of_regions_changes_nothing() -> Result<()> {
    Lab::run(|_| {
        fs::create_dir_all("/etc/agent-fw")?;
        fs::write(OVERRIDES, "# ours\n")?;
        for (text, expected) in [
            ("34.205.5.0/27\n", "--region"),
            ("[lab]\nsubnets = []\n", "missing field"),
            ("{\"lab\": 1}", "lab"),
            ("", "--region"),
        ] {
            fs::write("/run/new", text)?;
            let refused = agent_fw(["regions", "import", "/run/new"])?;
            ensure!(refused.code == Some(2) && refused.stderr.contains(expected), "{refused}");
            ensure!(fs::read_to_string(OVERRIDES)? == "# ours\n");
        }
        Ok(())
    })
}

fn doubtful_regions_are_warned_of() -> Result<()> {
    Lab::run(|_| {
        let text = "[lab]\nplace = 'here'\nsubnets = ['10.0.0.0/8']\ndomain = 'a.example'\n\
                    as_of = '2001-01-02'\nsource = 'x'\n";
        fs::write("/run/new.toml", text)?;
        let said = agent_fw(["regions", "import", "/run/new.toml"])?.success()?;
        for expected in ["more than half a year ago", "nobody calls over the internet", "is wide"] {
            let plain = said.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(plain.contains(expected), "{said}");
        }
        let checked = agent_fw(["regions", "check"])?;
        ensure!(checked.code == Some(1) && checked.stdout.contains("10.0.0.0/8"), "{checked}");
        Ok(())
    })
}
