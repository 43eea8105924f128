//! Wrong input is answered with what is wrong, where, and what to do; and changes nothing.

use crate::scene::install;
use crate::tests;
use agent_fw_lab::{Lab, agent_fw, agent_fw_path, output, run};
use anyhow::{Result, ensure};
use std::fs;

tests![
    a_failure_is_json_where_json_is_asked_for,
    every_wrong_input_is_refused_with_its_reason_and_changes_nothing,
    all_faults_of_a_list_are_reported_with_line_and_column,
    what_is_printed_fits_80_columns,
    colours_are_not_printed_where_no_terminal_shows_them,
    a_reader_that_goes_away_is_no_failure,
    without_nf_tables_every_command_that_needs_it_says_so,
];

/// Arguments, and a part of the answer.
const WRONG: &[(&[&str], &str)] = &[
    (&["--allow-from", "192.0.2.0/33"], "192.0.2.0/33: column 11: expected a prefix length"),
    (&["--allow-from", "192.0.2.0/255.0.255.0"], "expected a netmask"),
    (&["--allow-from", "192.0.2.256"], "column 1: expected an IPv4 or IPv6 address"),
    (&["--allow-from", "192.0.2.010"], "leading zeros"),
    (&["--allow-from", "10/24"], "only 1 of 4 octets"),
    (&["--allow-from", "192.0.2.9-192.0.2.1"], "does not come before"),
    (&["--allow-from", "192.0.2.9-2001:db8::1"], "the same family"),
    (&["--allow-from", "fe80::1%eth0"], "without a zone"),
    (&["--allow-from", "::ffff:192.0.2.1"], "not mapped into IPv6"),
    (&["--allow-from", "manager.example"], "names are not looked up"),
    (&["--allow-from", ""], "expected an IPv4 or IPv6 address"),
    (&["--allow-from", "region:"], "expected a region's name"),
    (&["--allow-from", "region:us1"], "the nearest names are us-1"),
    (&["--allow-from", "file:"], "expected a path"),
    (&["--allow-from", "file:/nowhere"], "cannot read /nowhere"),
    (&["--allow-from", "file:/etc"], "it is a directory"),
    (&["--allow-from", "file:/bin/true"], "expected text in UTF-8"),
    (&["--allow-from", "file:-", "--allow-from", "file:-"], "can be given once"),
    (&["--allow-from", "bad one", "--allow-mac", "bad two"], "bad two"),
    (&["--allow-mac", "02:00:00:00:00"], "expected a MAC address"),
    (&["--allow-mac", "02:00:00-00:00:01"], "expected a MAC address"),
    (&["--port", "0"], "0 is not in 1..=65535"),
    (&["--port", "65536"], "65536 is not in 1..=65535"),
    (&["--direction", "inward"], "possible values: bidirectional"),
    (&["--otherwise", "reject"], "possible values: drop, continue"),
    (&["--direction", "agent-initiated", "--allow-from", "any"], "closed to all"),
    (&["--direction", "agent-initiated", "--otherwise", "continue"], "must be drop"),
    (&["--early-drop", "--otherwise", "continue"], "choose one of them"),
    (&["--rules", "/nowhere"], "cannot read /nowhere"),
    (&["--rules", "-", "--allow-from", "file:-"], "can be given once"),
    (&["--rules", "/etc/hostname"], "/etc/hostname:1:"),
    (&["--rules", "/etc/hostname", "--direction", "agent-initiated"], "closed to all"),
    (&["--lenient"], "--rules"),
    (&["--outbound-to", "dns-server=192.0.2.53"], "--restrict-outbound or"),
    (&["--restrict-outbound", "--outbound-to", "dns-server"], "expected SERVICE=ADDRESSES"),
    (&["--restrict-outbound", "--outbound-to", "dns-server=x"], "expected an IPv4 or IPv6"),
    (&["--restrict-outbound", "--outbound-to", "dns=192.0.2.53"], "no service `dns`"),
    (&["--restrict-outbound", "--outbound-to", "manager=any"], "open to every address"),
    (&["--restrict-outbound", "--backend", "xdp"], "--restrict-outbound needs tables"),
    (&["--relay", "region:us1"], "the nearest names are us-1"),
    (&["--relay", "file:/nowhere"], "--relay file:/nowhere"),
    (&["--relay", "bad"], "--relay bad: column 1"),
    (&["--relay", "192.0.2.1", "--port", "4122"], "change --port"),
    (&["--relay", "192.0.2.1", "--backend", "xdp"], "--backend must be nft or both"),
    (&["--allow-form", "any"], "a similar argument exists: '--allow-from'"),
];

fn every_wrong_input_is_refused_with_its_reason_and_changes_nothing() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        let policy = fs::read("/etc/agent-fw/policy.toml")?;
        for (arguments, expected) in WRONG {
            for subcommand in ["install", "compile"] {
                let words = std::iter::once(&subcommand).chain(*arguments);
                let refused = agent_fw(words)?;
                ensure!(refused.code == Some(2), "{refused}");
                let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
                ensure!(said.contains(expected), "`{expected}` is not in: {refused}");
            }
            ensure!(run(["nft", "--handle", "list", "ruleset"])? == before, "{arguments:?}");
            ensure!(fs::read("/etc/agent-fw/policy.toml")? == policy, "{arguments:?}");
        }
        Ok(())
    })
}

fn all_faults_of_a_list_are_reported_with_line_and_column() -> Result<()> {
    Lab::run(|_| {
        let lines: Vec<String> = (1..=500)
            .map(|n| if n % 5 == 0 { format!("  300.0.0.{n}") } else { format!("10.0.{n}.0") })
            .map(|line| line.replace("10.0.2", "10.0.1"))
            .collect();
        fs::write("/run/some.list", lines.join("\n"))?;
        let refused = agent_fw(["compile", "--allow-from", "file:/run/some.list"])?;
        ensure!(refused.code == Some(2), "{refused}");
        for n in (5..=500).step_by(5) {
            let place = format!("/run/some.list:{n}:3: expected");
            ensure!(refused.stderr.contains(&place), "no `{place}`");
        }
        Ok(())
    })
}

fn a_failure_is_json_where_json_is_asked_for() -> Result<()> {
    Lab::run(|_| {
        let error = |words: &[&str], code: i32| -> Result<serde_json::Value> {
            let failed = agent_fw(words)?;
            ensure!(failed.code == Some(code), "{failed}");
            let said: serde_json::Value = serde_json::from_str(&failed.stdout)?;
            Ok(said["error"].clone())
        };
        install(&["--allow-from", "region:us-1"])?;
        let refused = error(
            &[
                "set",
                "--allow-from",
                "192.0.2.0/25",
                "--direction",
                "agent-initiated",
                "--dry-run",
                "--json",
            ],
            2,
        )?;
        ensure!(refused["kind"] == "input", "{refused:#}");
        let unknown = error(&["regions", "show", "us-9", "--json"], 2)?;
        ensure!(unknown["message"].as_str().is_some_and(|m| m.contains("us-9")), "{unknown:#}");
        let dry = agent_fw(["allow", "203.0.113.9", "--dry-run", "--json"])?;
        ensure!(dry.code == Some(1), "{dry}");
        let dry: serde_json::Value = serde_json::from_str(&dry.stdout)?;
        ensure!(dry["would_change"] == true, "{dry:#}");
        ensure!(dry["changes"][0] == "203.0.113.9 would be admitted to TCP port 4118", "{dry:#}");
        let dry = agent_fw(["allow", "region:us-1", "--dry-run", "--json"])?.success()?;
        let dry: serde_json::Value = serde_json::from_str(&dry)?;
        ensure!(dry["would_change"] == false && dry["changes"] == serde_json::json!([]), "{dry:#}");
        Ok(())
    })
}

fn what_is_printed_fits_80_columns() -> Result<()> {
    Lab::run(|_| {
        let many: Vec<String> = (0..40)
            .map(|n| format!("--allow-from=2001:db8:{n:x}:ffff:ffff:ffff:ffff:ffff"))
            .collect();
        let mut outputs = vec![
            agent_fw(["install", "--no-boot"].map(str::to_owned).iter().chain(&many))?,
            agent_fw(["status"])?,
            agent_fw(["install", "--no-boot", "--dry-run", "--allow-from", "region:us-1"])?,
            agent_fw([
                "install",
                "--no-boot",
                "--allow-from",
                "54.221.196.9/24",
                "--log",
                "--replace",
            ])?,
            agent_fw(["regions", "list"])?,
            agent_fw(["regions", "show", "us-1"])?,
        ];
        run(["nft", "add", "rule", "inet", "agent_fw", "gate", "tcp", "dport", "22", "drop"])?;
        outputs.extend([agent_fw(["status"])?, agent_fw(["apply"])?, agent_fw(["uninstall"])?]);
        for help in ["install", "apply", "uninstall", "compile", "status", "regions"] {
            outputs.push(agent_fw([help, "--help"])?);
        }
        for (arguments, _) in WRONG.iter().filter(|(arguments, _)| arguments[0] == "--allow-from") {
            outputs.push(agent_fw(std::iter::once(&"compile").chain(*arguments))?);
        }
        for output in outputs {
            for line in output.stdout.lines().chain(output.stderr.lines()) {
                let width = line.chars().count();
                ensure!(width <= 80, "{width} columns in `{}`: {line}", output.command);
            }
        }
        Ok(())
    })
}

fn colours_are_not_printed_where_no_terminal_shows_them() -> Result<()> {
    Lab::run(|_| {
        let finished = agent_fw(["install", "--no-boot", "--allow-from", "region:us-1"])?;
        ensure!(!finished.stdout.contains('\u{1b}'), "{finished}");
        // A terminal, by util-linux' script; NO_COLOR is set for all commands of a lab.
        let program = agent_fw_lab::agent_fw_path();
        let status = format!("{} status", program.display());
        let plain = run(["script", "--quiet", "--command", &status, "/dev/null"])?;
        ensure!(plain.contains("closed:") && !plain.contains('\u{1b}'), "{plain:?}");
        let coloured =
            agent_fw_lab::command(["script", "--quiet", "--command", &status, "/dev/null"])
                .env_remove("NO_COLOR")
                .env("TERM", "xterm-256color")
                .output()?;
        ensure!(coloured.stdout.contains(&0x1b), "{}", String::from_utf8_lossy(&coloured.stdout));
        Ok(())
    })
}

fn a_reader_that_goes_away_is_no_failure() -> Result<()> {
    let list: String = (0..20_000_u32).map(|n| format!("10.{}.{}.1\n", n >> 8, n & 255)).collect();
    Lab::run(|_| {
        fs::write("/run/some.list", list)?;
        let mut child = agent_fw_lab::command([agent_fw_lab::agent_fw_path()])
            .args(["compile", "--allow-from", "file:/run/some.list"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        drop(child.stdout.take());
        let output = child.wait_with_output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Ok(())
    })
}

/// Runs what follows as on a kernel without nf_tables: a filter of seccomp answers `socket(AF_NETLINK,
/// _, NETLINK_NETFILTER)` with `EPROTONOSUPPORT`. Its numbers are those of x86-64.
const WITHOUT_NF_TABLES: &str = r#"
    my ($load, $equal, $return) = (0x20, 0x15, 0x06);
    my ($socket, $netlink, $netfilter, $number, $first, $third) = (41, 16, 12, 0, 16, 32);
    my $filter = join '', map { pack('SCCL', @$_) } (
        [$load, 0, 0, $number], [$equal, 0, 5, $socket],
        [$load, 0, 0, $first], [$equal, 0, 3, $netlink],
        [$load, 0, 0, $third], [$equal, 0, 1, $netfilter],
        [$return, 0, 0, 0x00050000 | 93], [$return, 0, 0, 0x7fff0000]);
    my $program = pack('S x6 P', 8, $filter);
    syscall(157, 38, 1, 0, 0, 0) == 0 or die "no new privileges: $!";
    syscall(157, 22, 2, $program) == 0 or die "seccomp: $!";
    exec @ARGV or die;
"#;

fn without_nf_tables_every_command_that_needs_it_says_so() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the filter is for x86-64");
        return Ok(());
    }
    Lab::run(|lab| {
        let from = lab.peer("manager")?.v4().to_string();
        install(&["--allow-from", "region:us-1"])?;
        for words in [
            &["install", "--no-boot", "--allow-from", "region:us-1", "--log"][..],
            &["install", "--no-boot", "--allow-from", "region:us-1", "--dry-run"],
            &["apply"],
            &["apply", "--boot"],
            &["status"],
            &["status", "--json"],
            &["verify"],
            &["doctor"],
            &["explain", "--from", &from],
            &["metrics"],
            &["guard"],
            &["uninstall", "--keep-policy"],
            &["uninstall"],
        ] {
            let program = agent_fw_path().display().to_string();
            let run = ["perl", "-e", WITHOUT_NF_TABLES, "--", &program];
            let finished = output(run.iter().chain(words))?;
            ensure!(!matches!(finished.code, Some(0 | 2)), "{words:?}: {finished}");
            let said = finished.to_string();
            ensure!(said.contains("this kernel has no nf_tables"), "{words:?}: {said}");
            ensure!(!said.contains("EPROTO") && !said.contains("EINVAL"), "{words:?}: {said}");
        }
        // What needs it not goes on.
        agent_fw(["compile", "--allow-from", "region:us-1"])?.success()?;
        Ok(())
    })
}
