//! What is in the packages.

use crate::tests;
use agent_fw_lab::{Lab, agent_fw, output, package, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;

tests![
    packed_twice_every_byte_is_the_same,
    every_kind_of_package_has_the_program_and_all_that_goes_with_it,
    debians_own_checker_finds_nothing_wrong,
    checksums_are_those_of_the_packages,
    the_program_asks_nothing_of_a_host_but_its_kernel,
    every_manual_page_is_readable_and_there_is_one_for_each_subcommand,
    completions_are_what_the_shell_understands,
    the_policy_to_begin_with_compiles_and_closes_the_port_to_others,
];

/// What every package has, by how its path ends.
const ALL: [&str; 24] = [
    "usr/bin/agent-fw",
    "usr/lib/systemd/system/agent-fw.service",
    "usr/lib/systemd/system/agent-fw-fallback.service",
    "usr/lib/systemd/system/agent-fw-guard.service",
    "usr/lib/systemd/system/agent-fw-interface@.service",
    "usr/lib/systemd/system/agent-fw-metrics@.service",
    "usr/lib/systemd/system/agent-fw-metrics@.timer",
    "usr/lib/systemd/system/nftables.service.d/agent-fw.conf",
    "usr/lib/modprobe.d/agent-fw.conf",
    "usr/lib/modules-load.d/agent-fw.conf",
    "usr/lib/udev/rules.d/99-agent-fw.rules",
    "usr/share/bash-completion/completions/agent-fw",
    "usr/share/doc/agent-fw/README.md",
    "usr/share/doc/agent-fw/docs/limits.md",
    "usr/share/doc/agent-fw/libraries.txt",
    "usr/share/doc/agent-fw/examples/policy.toml",
    "usr/share/fish/vendor_completions.d/agent-fw.fish",
    "usr/share/man/man5/agent-fw.toml.5.gz",
    "usr/share/man/man7/agent-fw.7.gz",
    "usr/share/man/man8/agent-fw.8.gz",
    "usr/share/man/man8/agent-fw-policy-edit.8.gz",
    "usr/share/man/man8/agent-fw-install.8.gz",
    "usr/share/man/man8/agent-fw-regions-list.8.gz",
    "/_agent-fw",
];

/// `dpkg-deb`, `rpm` or `tar` that lists the package.
fn listings() -> Result<Vec<String>> {
    let (deb, rpm, tarball) =
        (package("newer", ".deb")?, package("newer", ".rpm")?, package("newer", ".tar.xz")?);
    Ok(vec![
        run([Path::new("dpkg-deb"), Path::new("--contents"), &deb])?,
        run([Path::new("rpm"), Path::new("-qplv"), &rpm])?,
        run([
            Path::new("tar"),
            Path::new("--list"),
            Path::new("--verbose"),
            Path::new("--file"),
            &tarball,
        ])?,
    ])
}

/// Unpacks Debian's package into the lab's own /run.
fn unpack() -> Result<&'static Path> {
    let root = Path::new("/run/unpacked");
    run([Path::new("dpkg-deb"), Path::new("--extract"), &package("newer", ".deb")?, root])?;
    Ok(root)
}

fn packed_twice_every_byte_is_the_same() -> Result<()> {
    for ending in [".deb", ".rpm", ".tar.xz", "SHA256SUMS"] {
        let (first, again) = (package("newer", ending)?, package("again", ending)?);
        ensure!(fs::read(first)? == fs::read(again)?, "*{ending} differs");
        // Not because nothing could make a difference.
        let older = fs::read(package("older", ending)?)?;
        ensure!(fs::read(package("newer", ending)?)? != older, "*{ending} is the older one");
    }
    Ok(())
}

fn every_kind_of_package_has_the_program_and_all_that_goes_with_it() -> Result<()> {
    for listing in listings()? {
        for wanted in ALL {
            let line = listing.lines().find(|line| line.ends_with(wanted));
            let line = line.with_context(|| format!("there is no {wanted} in {listing}"))?;
            let mode = if wanted.ends_with("bin/agent-fw") { "-rwxr-xr-x" } else { "-rw-r--r--" };
            ensure!(line.starts_with(mode) && line.contains("root"), "{line}");
        }
        let licensed = listing.contains("LICENSE-MIT") || listing.contains("copyright");
        ensure!(licensed, "there is no licence in {listing}");
        ensure!(!listing.contains(" /etc") && !listing.contains("./etc"), "{listing}");
    }
    Ok(())
}

fn debians_own_checker_finds_nothing_wrong() -> Result<()> {
    let words = ["lintian", "--show-overrides"].map(Path::new);
    let checked = output([words[0], words[1], &package("newer", ".deb")?])?;
    let found: Vec<&str> =
        checked.stdout.lines().filter(|line| line.starts_with(['E', 'W'])).collect();
    ensure!(found.is_empty(), "{found:#?}");
    // A static program looks to it like a library without others.
    let is_overridden = |line: &str| line.starts_with("O: agent-fw: shared-library-lacks");
    ensure!(checked.stdout.lines().any(is_overridden), "it has not looked: {checked}");
    Ok(())
}

fn checksums_are_those_of_the_packages() -> Result<()> {
    let sums = package("newer", "SHA256SUMS")?;
    let text = fs::read_to_string(&sums)?;
    ensure!(text.lines().count() == 3, "{text}");
    let directory = sums.parent().context("a file is in a directory")?;
    run([
        Path::new("env"),
        Path::new("--chdir"),
        directory,
        Path::new("sha256sum"),
        Path::new("--check"),
        &sums,
    ])?;
    Ok(())
}

fn the_program_asks_nothing_of_a_host_but_its_kernel() -> Result<()> {
    Lab::run(|_| {
        let program = unpack()?.join("usr/bin/agent-fw");
        // A root directory with nothing else in it but the kernel's: no library, no loader. Nothing is
        // executed in /run.
        let root = Path::new("/var/lib/empty");
        for kernels in ["proc", "dev"] {
            let place = root.join(kernels);
            fs::create_dir_all(&place)?;
            run(["mount", "--bind", &format!("/{kernels}"), &place.to_string_lossy()])?;
        }
        run([Path::new("cp"), &program, root])?;
        let said = run([
            "chroot",
            "/var/lib/empty",
            "/agent-fw",
            "compile",
            "--allow-from",
            "region:us-1",
        ])?;
        ensure!(said.contains("table inet agent_fw"), "{said}");
        let (deb, rpm) = (package("newer", ".deb")?, package("newer", ".rpm")?);
        let depends = run(["dpkg-deb", "--field", &deb.to_string_lossy(), "Depends"])?;
        ensure!(depends.trim().is_empty(), "{depends}");
        let required = run(["rpm", "--query", "--package", "--requires", &rpm.to_string_lossy()])?;
        let library = required.lines().find(|line| line.contains(".so"));
        ensure!(library.is_none(), "{required}");
        Ok(())
    })
}

fn every_manual_page_is_readable_and_there_is_one_for_each_subcommand() -> Result<()> {
    Lab::run(|_| {
        let pages = unpack()?.join("usr/share/man/man8");
        let help = agent_fw(["--help"])?.success()?;
        let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
        let commands = commands.take_while(|line| !line.is_empty());
        // Lines that are indented further go on with what a command does.
        let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        let names: Vec<&str> = names.filter(|name| !name.is_empty() && *name != "help").collect();
        ensure!(names.contains(&"install") && names.contains(&"metrics"), "{names:?}");
        for name in names {
            let page = pages.join(format!("agent-fw-{name}.8.gz"));
            let said = output([Path::new("zcat"), &page])?.success()?;
            for part in [&format!("agent\\-fw {name}"), ".SH OPTIONS", ".SH FILES", "EXIT STATUS"] {
                ensure!(said.contains(part), "{part}: {said}");
            }
        }
        Ok(())
    })
}

fn completions_are_what_the_shell_understands() -> Result<()> {
    Lab::run(|_| {
        let script = unpack()?.join("usr/share/bash-completion/completions/agent-fw");
        // What is unpacked there cannot be run there.
        let program = agent_fw_lab::agent_fw_path();
        let programs = program.parent().context("a directory")?;
        let ask = "source \"$1\"; PATH=\"$2:$PATH\"; COMP_LINE='agent-fw ver'; COMP_POINT=12; \
                   _agent_fw; echo \"${COMPREPLY[@]}\"";
        let [script, programs] = [&*script, programs].map(Path::to_string_lossy);
        let said = run(["bash", "-c", ask, "bash", &script, &programs])?;
        ensure!(said.trim() == "verify", "{said}");
        Ok(())
    })
}

fn the_policy_to_begin_with_compiles_and_closes_the_port_to_others() -> Result<()> {
    Lab::run(|_| {
        let policy = unpack()?.join("usr/share/doc/agent-fw/examples/policy.toml");
        fs::create_dir_all("/etc/agent-fw")?;
        fs::copy(policy, "/etc/agent-fw/policy.toml")?;
        agent_fw(["apply"])?.success()?;
        agent_fw(["verify"])?.success()?;
        let table = run(["nft", "list", "table", "inet", "agent_fw"])?;
        ensure!(table.contains("34.205.5.0") && table.contains("drop"), "{table}");
        Ok(())
    })
}
