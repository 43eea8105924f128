//! The promise "open": `install` tries it, names what stops a source, and says what to type.

use crate::scene::{AGENT, address, connect_from};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, feed, run};
use anyhow::{Context as _, Result, ensure};

tests![
    install_says_that_an_admitted_source_gets_through,
    what_install_advises_opens_a_plain_nftables_ruleset,
    what_install_advises_opens_iptables_in_nf_tables,
    what_install_advises_opens_iptables_legacy,
    what_install_advises_opens_ufw_and_stays_when_it_is_reloaded,
    install_sees_that_a_stranger_gets_in_where_no_program_is,
];

const SOURCE: &str = "34.205.5.1";
const US: [&str; 2] = ["--allow-from", "34.205.5.0/27"];

/// `agent-fw install`, with the test in the end.
fn install(flags: &[&str]) -> Result<String> {
    agent_fw(["install", "--no-boot"].iter().chain(flags))?.success()
}

/// A host that has a way back to the source.
fn manager(lab: &Lab) -> Result<Peer> {
    let peer = lab.peer("manager")?;
    peer.add_address(address(SOURCE))?;
    Ok(peer)
}

fn install_says_that_an_admitted_source_gets_through() -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        let said = install(&US)?;
        ensure!(said.contains("open: tried with 1 admitted source"), "{said}");
        ensure!(said.contains("closed: TCP port 4118 is closed to all but"), "{said}");
        ensure!(connect_from(&peer, address(SOURCE), AGENT)? == Outcome::Talked);
        let said = install(&[&US[..], &["--untested"]].concat())?;
        ensure!(said.contains("not tested"), "{said}");
        Ok(())
    })
}

/// Puts up a firewall, installs, types what it says, and looks whether that is true.
fn advice_opens(firewall: &str, put_up: impl FnOnce(&Lab) -> Result<()> + Send) -> Result<()> {
    advice_opens_and(firewall, put_up, || Ok(()))
}

/// The same, with what is done afterwards and may change nothing.
fn advice_opens_and(
    firewall: &str,
    put_up: impl FnOnce(&Lab) -> Result<()> + Send,
    afterwards: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        put_up(lab)?;
        ensure!(connect_from(&peer, address(SOURCE), AGENT)? == Outcome::Silent);
        let said = install(&US)?;
        for part in ["not open: 34.205.5.1 is dropped", "cannot overrule", firewall] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        let mut lines = said.lines().skip_while(|line| !line.contains("cannot overrule"));
        let typed = lines.nth(1).context("something to type")?.trim();
        run(typed.split(' ')).with_context(|| said.clone())?;
        ensure!(connect_from(&peer, address(SOURCE), AGENT)? == Outcome::Talked, "{said}");
        ensure!(connect_from(&peer, peer.v4().into(), AGENT)? == Outcome::Silent, "open to all");
        let again = install(&US)?;
        ensure!(again.contains("open: tried with 1 admitted source"), "{again}");
        afterwards()?;
        ensure!(agent_fw(["explain", "--from", SOURCE])?.code == Some(0));
        ensure!(connect_from(&peer, address(SOURCE), AGENT)? == Outcome::Talked, "afterwards");
        // The exception is the other firewall's: it stays.
        agent_fw(["uninstall"])?.success()?;
        ensure!(connect_from(&peer, address(SOURCE), AGENT)? == Outcome::Talked, "uninstalled");
        Ok(())
    })
}

fn what_install_advises_opens_a_plain_nftables_ruleset() -> Result<()> {
    advice_opens("nftables", |_| {
        let rules = "table inet host {\nchain input {\ntype filter hook input priority 0; \
                     policy drop;\nct state established,related accept\niif lo accept\n}\n}\n";
        std::fs::write("/etc/nftables.conf", rules)?;
        feed(["nft", "-f", "-"], rules).map(drop)
    })
}

/// What many hosts have: answers pass, and the rest ends.
fn iptables(program: &str) -> Result<()> {
    run([program, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"])?;
    run([program, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT"])?;
    run([program, "-P", "INPUT", "DROP"]).map(drop)
}

fn what_install_advises_opens_iptables_in_nf_tables() -> Result<()> {
    advice_opens("iptables-nft -w -t filter -I INPUT", |_| iptables("iptables-nft"))
}

fn what_install_advises_opens_iptables_legacy() -> Result<()> {
    advice_opens("iptables-legacy -w -t filter -I INPUT", |_| iptables("iptables-legacy"))
}

fn what_install_advises_opens_ufw_and_stays_when_it_is_reloaded() -> Result<()> {
    let put_up = |lab: &Lab| {
        lab.overlay("/var/lib")?;
        run(["ufw", "--force", "enable"]).map(drop)
    };
    advice_opens_and("ufw prepend allow", put_up, || run(["ufw", "reload"]).map(drop))
}

fn install_sees_that_a_stranger_gets_in_where_no_program_is() -> Result<()> {
    Lab::run(|lab| {
        let (peer, other) = (manager(lab)?, lab.peer("other")?);
        run(["ip", "route", "add", "default", "via", &other.v4().to_string()])?;
        let flags = ["--backend", "xdp", "--interface", &peer.interface()];
        let said = install(&[&US[..], &flags].concat())?;
        ensure!(said.contains("not closed: 198.51.100.7 reaches the port by other0"), "{said}");
        ensure!(said.contains("open: tried"), "{said}");
        Ok(())
    })
}
