//! The XDP program on real interfaces: who gets through, what stays through changes, what is left.

use crate::scene::{
    AGENT, LISTED, PATIENCE, UNLISTED, address, expect, install, status, try_install,
};
use crate::{foreign, tests, updates};
use agent_fw_lab::packet::{Ethernet, Ipv4, Tcp, Vlan};
use agent_fw_lab::{
    Conversation, Lab, Listener, Outcome, Peer, Wire, agent_fw, feed, is_emulated,
    kill_agent_fw_after, knock, run,
};
use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use serde_json::Value;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

tests![
    native_and_generic_programs_admit_listed_sources_and_no_others,
    a_vlan_tag_does_not_get_an_unlisted_source_past_the_program,
    a_listed_connection_goes_on_through_60_updates_of_the_program_and_nobody_is_let_in,
    counters_of_the_program_go_on_through_updates,
    each_interface_has_its_own_counters,
    what_an_older_version_has_pinned_is_taken_over,
    the_program_stays_while_its_interface_goes_down_and_up,
    an_interface_that_was_deleted_is_in_nobodys_way,
    another_program_cannot_take_the_place_of_ours,
    changing_the_backend_leaves_nothing_of_the_one_of_before,
    when_a_later_step_fails_the_program_of_before_stays,
    one_interface_that_cannot_be_served_leaves_the_others_as_they_were,
    after_kill_9_at_any_moment_uninstall_leaves_no_program,
    without_a_physical_interface_one_is_to_be_named,
];

/// Where agent-fw pins everything.
pub(crate) const PINS: &str = "/sys/fs/bpf/agent-fw";

/// Where the pins of this thread's network namespace are.
pub(crate) fn pins() -> Result<PathBuf> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new(PINS).join(format!("netns-{namespace}")))
}
const US: [&str; 2] = ["--allow-from", "region:us-1"];

pub(crate) fn flags<'a>(backend: &'a str, peer: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&US[..], &["--backend", backend, "--interface", peer], more].concat()
}

/// The program on an interface, as the kernel lists it: its mode and its number.
pub(crate) fn attached(interface: &str) -> Result<Option<(String, u64)>> {
    let text = run(["ip", "-json", "link", "show", "dev", interface])?;
    let links: Value = serde_json::from_str(&text)?;
    let xdp = &links[0]["xdp"];
    let mode = match xdp["mode"].as_u64() {
        None => return Ok(None),
        Some(1) => "native",
        Some(2) => "generic",
        Some(_) => "other",
    };
    Ok(Some((mode.to_owned(), xdp["prog"]["id"].as_u64().context("no number")?)))
}

pub(crate) fn is_clean(interface: &str) -> Result<()> {
    ensure!(attached(interface)?.is_none(), "{interface} still has a program");
    ensure!(!Path::new(PINS).exists(), "pins are left");
    let files = std::fs::read_dir("/run/agent-fw").into_iter().flatten().flatten();
    let is_labels = |name: OsString| name.to_string_lossy().starts_with("xdp-labels");
    ensure!(!files.map(|file| file.file_name()).any(is_labels), "labels are left");
    Ok(())
}

fn native_and_generic_programs_admit_listed_sources_and_no_others() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let more = ["--allow-from", "2001:db8:1::/64", "--xdp-mode"];
        for mode in ["native", "generic"] {
            let said = install(&flags("xdp", "manager0", &[&more[..], &[mode]].concat()))?;
            ensure!(said.contains(&format!("{mode} XDP on manager0")), "{said}");
            ensure!(attached("manager0")?.is_some_and(|(seen, _)| seen == mode));
            expect(&manager, Outcome::Talked, &LISTED)?;
            expect(&manager, Outcome::Silent, &UNLISTED)?;
            expect(&manager, Outcome::Talked, &["2001:db8:1::1"])?;
            expect(&manager, Outcome::Silent, &["2001:db8:2::1"])?;
            let (status, code) = status()?;
            ensure!(code == Some(0) && status["agree"] == true, "{status:#}");
            ensure!(status["xdp"]["interfaces"][0]["mode"] == mode, "{status:#}");
        }
        ensure!(run(["nft", "list", "tables"])?.is_empty(), "there is a table");
        agent_fw(["uninstall"])?.success()?;
        expect(&manager, Outcome::Talked, &UNLISTED[..1])?;
        is_clean("manager0")
    })
}

fn a_vlan_tag_does_not_get_an_unlisted_source_past_the_program() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let sources =
            [(Ipv4Addr::new(34, 205, 5, 1), true), (Ipv4Addr::new(198, 51, 100, 7), false)];
        for (source, _) in sources {
            peer.add_address(source.into())?;
        }
        for mode in ["native", "generic"] {
            install(&flags("xdp", "manager0", &["--xdp-mode", mode]))?;
            for (source, listed) in sources {
                let answered = peer.enter(|| tagged_syn(&peer, source))??;
                ensure!(answered == listed, "{mode}: {source} was answered: {answered}");
            }
        }
        Ok(())
    })
}

/// Whether a SYN with a priority tag is answered.
pub(crate) fn tagged_syn(peer: &Peer, source: Ipv4Addr) -> Result<bool> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let ip = Ipv4::new(source, peer.host_v4());
    let wire = Wire::open(peer.own_interface())?;
    wire.send(&(ethernet / Vlan::priority() / ip / Tcp::syn(40_000, AGENT)).bytes())?;
    let from = SocketAddr::new(source.into(), 40_000);
    let to = SocketAddr::new(peer.host_v4().into(), AGENT);
    Ok(wire.find_syn_ack(from, to, PATIENCE)?.is_some())
}

fn a_listed_connection_goes_on_through_60_updates_of_the_program_and_nobody_is_let_in() -> Result<()>
{
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        install(&flags("xdp", "manager0", &[]))?;
        let (said, tried) = under_traffic(&peer, || update(60))?;
        println!("60 updates, {said} things said and heard, {tried} SYNs refused");
        ensure!(said > 60 && tried > 60, "too little traffic: {said}, {tried}");
        Ok(())
    })
}

/// Does `work` while a listed source talks with the agent and an unlisted one knocks: nothing may
/// be lost, and nobody let in. Tells how much was said and tried.
pub(crate) fn under_traffic(peer: &Peer, work: impl FnOnce() -> Result<()>) -> Result<(u64, u64)> {
    let _agent = Listener::bind(AGENT)?;
    let (listed, unlisted) = (address("34.205.5.1"), Ipv4Addr::new(198, 51, 100, 7));
    peer.add_address(listed)?;
    peer.add_address(unlisted.into())?;
    witness("prerouting")?;
    peer.enter(|| witness("output"))??;
    let agent = peer.host_address(listed, AGENT);
    let mut talk = peer.enter(|| Conversation::open(listed, agent, PATIENCE))??;
    let done = AtomicBool::new(false);
    let counts = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let talking = scope.spawn(|| peer.enter(|| updates::talk(&mut talk, &done))?);
        let knocking = scope.spawn(|| peer.enter(|| knock(peer, unlisted, AGENT, &done))?);
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let said = talking.join().ok().context("the listed source panicked")??;
        let tried = knocking.join().ok().context("the unlisted source panicked")??;
        worked.map(|()| (said, tried))
    })?;
    // The last acknowledgement may be on its way.
    std::thread::sleep(Duration::from_millis(200));
    let (sent, came) = (peer.enter(witnessed)??, witnessed()?);
    let overflown =
        if is_emulated() { peer.enter(|| overflown(peer.own_interface()))?? } else { 0 };
    ensure!(
        sent >= came && sent - came <= overflown,
        "{sent} packets sent, {came} let through, {overflown} lost on a wire whose queue was full"
    );
    Ok(counts)
}

fn update(count: usize) -> Result<()> {
    for round in 0..count {
        match round % 3 {
            0 => install(&flags("xdp", "manager0", &["--allow-from", "192.0.2.0/24"]))?,
            1 => agent_fw(["apply"])?.success()?,
            _ => install(&flags("xdp", "manager0", &[]))?,
        };
        ensure!(attached("manager0")?.is_some(), "no program after update {round}");
    }
    Ok(())
}

/// Counts the packets to the agent: at the peer those that leave, at the host those that XDP lets
/// through.
fn witness(hook: &str) -> Result<()> {
    let rules = format!(
        "table inet witness {{\ncounter seen {{ }}\nchain watch {{\n\
         type filter hook {hook} priority -400;\n\
         ip saddr 34.205.5.1 tcp dport 4118 counter name seen\n}}\n}}\n"
    );
    feed(["nft", "-f", "-"], &rules).map(drop)
}

fn witnessed() -> Result<u64> {
    let text = run(["nft", "list", "counter", "inet", "witness", "seen"])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    Ok(words.next().context("no count")?.parse()?)
}

/// Frames that found no room in the queue between the two ends of a veth pair: on an emulated
/// processor, a flood fills it.
fn overflown(interface: &str) -> Result<u64> {
    let text = run(["ip", "-json", "-statistics", "link", "show", "dev", interface])?;
    let link: Value = serde_json::from_str(&text)?;
    link[0]["stats64"]["tx"]["dropped"].as_u64().context("no statistics")
}

/// Packets that a program admitted by what these words name.
fn admitted(status: &Value, by: &str) -> u64 {
    let all = status["xdp"]["admitted"].as_array().into_iter().flatten();
    all.filter(|entry| entry["by"] == by).filter_map(|entry| entry["packets"].as_u64()).sum()
}

fn counters_of_the_program_go_on_through_updates() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &["--allow-from", "198.51.100.7"]))?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "198.51.100.7"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.8"])?;
        let (before, _) = status()?;
        let counted = admitted(&before, "region us-1");
        ensure!((4..12).contains(&counted), "{before:#}");
        ensure!(admitted(&before, "listed addresses") >= 4, "{before:#}");
        // A SYN is sent again where its answer does not come.
        let dropped = before["xdp"]["refused"].as_u64();
        ensure!((1..3).contains(&dropped.unwrap_or_default()), "{before:#}");
        // Another label comes before it and one goes: its count stays its own.
        install(&flags("xdp", "manager0", &["--allow-from", "region:de-1"]))?;
        agent_fw(["apply"])?.success()?;
        let (after, _) = status()?;
        ensure!(admitted(&after, "region us-1") == counted, "{after:#}");
        ensure!(admitted(&after, "region de-1") == 0, "{after:#}");
        ensure!(after["xdp"]["refused"].as_u64() == dropped, "{after:#}");
        // The number of a label that has gone begins anew for another.
        install(&flags("xdp", "manager0", &["--allow-from", "region:gb-1"]))?;
        let (reused, _) = status()?;
        ensure!(admitted(&reused, "region gb-1") == 0, "{reused:#}");
        Ok(())
    })
}

fn each_interface_has_its_own_counters() -> Result<()> {
    Lab::run(|lab| {
        let (manager, branch) = (lab.peer("manager")?, lab.peer("branch")?);
        let _agent = Listener::bind(AGENT)?;
        let counts = |name: &str| -> Result<(u64, u64)> {
            let (seen, _) = status()?;
            let all = seen["xdp"]["interfaces"].as_array().context("no interfaces")?;
            let of = all.iter().find(|of| of["name"] == name).context("no such interface")?;
            let count = |what: &str| of["counters"][what].as_u64().context("no count");
            Ok((count("admitted")?, count("refused")?))
        };
        install(&flags("xdp", "manager0", &["--interface", "branch0"]))?;
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        expect(&branch, Outcome::Silent, &UNLISTED[..1])?;
        let (admitted, refused) = counts("manager0")?;
        ensure!(admitted >= 4 && refused == 0, "{admitted}, {refused}");
        let (none, dropped) = counts("branch0")?;
        ensure!(none == 0 && dropped > 0, "{none}, {dropped}");
        // An interface's counts are its own, whichever others come and go.
        install(&flags("xdp", "branch0", &[]))?;
        install(&flags("xdp", "manager0", &["--interface", "branch0"]))?;
        ensure!(counts("branch0")? == (0, dropped), "{:?}", counts("branch0")?);
        ensure!(counts("manager0")? == (0, 0), "{:?}", counts("manager0")?);
        Ok(())
    })
}

fn what_an_older_version_has_pinned_is_taken_over() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let here = pins()?;
        let pin = |name: &str| here.join(name);
        // As an older one has left it: counters whose layout was another, and a pin of its own.
        std::fs::rename(pin("tally-2"), pin("tally-1"))?;
        std::fs::rename(pin("samples-1"), pin("events-0"))?;
        agent_fw(["apply"])?.success()?;
        ensure!(attached("manager0")?.is_some(), "no program");
        for (name, stays) in [("tally-1", false), ("events-0", false), ("tally-2", true)] {
            ensure!(pin(name).exists() == stays, "{name}");
        }
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        ensure!(status()?.1 == Some(0));
        agent_fw(["uninstall"])?.success()?;
        is_clean("manager0")
    })
}

fn the_program_stays_while_its_interface_goes_down_and_up() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        run(["ip", "link", "set", "manager0", "down"])?;
        run(["ip", "link", "set", "manager0", "up"])?;
        let up = || -> Result<bool> {
            Ok(run(["ip", "link", "show", "manager0"])?.contains("state UP"))
        };
        while !up()? {
            std::thread::sleep(Duration::from_millis(5));
        }
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])
    })
}

fn an_interface_that_was_deleted_is_in_nobodys_way() -> Result<()> {
    Lab::run(|lab| {
        let (manager, _branch) = (lab.peer("manager")?, lab.peer("branch")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &["--interface", "branch0"]))?;
        run(["ip", "link", "delete", "branch0"])?;
        let (seen, code) = status()?;
        ensure!(code == Some(1), "status does not see it: {seen:#}");
        let applied = agent_fw(["apply"])?;
        ensure!(applied.code == Some(3) && applied.stderr.contains("branch0"), "{applied}");
        // At boot, an interface may be missing: the others are served all the same.
        run(["rm", "-r", PINS])?;
        while attached("manager0")?.is_some() {
            std::thread::sleep(Duration::from_millis(2));
        }
        agent_fw(["apply", "--boot"])?.success()?;
        ensure!(attached("manager0")?.is_some(), "manager0 has no program");
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        install(&flags("xdp", "manager0", &[]))?;
        ensure!(status()?.1 == Some(0));
        run(["ip", "link", "delete", "manager0"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(!Path::new(PINS).exists(), "pins are left");
        Ok(())
    })
}

fn another_program_cannot_take_the_place_of_ours() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let before = attached("manager0")?;
        for mode in [XdpMode::Driver, XdpMode::Skb] {
            ensure!(foreign::at_xdp("manager0", mode).is_err(), "{mode:?} was attached");
        }
        ensure!(attached("manager0")? == before);
        expect(&manager, Outcome::Silent, &UNLISTED[..1])
    })
}

fn changing_the_backend_leaves_nothing_of_the_one_of_before() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for backend in ["nft", "both", "xdp", "nft", "xdp", "both", "nft"] {
            match backend {
                "nft" => install(&US)?,
                backend => install(&flags(backend, "manager0", &[]))?,
            };
            let table = run(["nft", "list", "tables"])?.contains("agent_fw");
            ensure!(table == (backend != "xdp"), "{backend}: table: {table}");
            let program = attached("manager0")?.is_some();
            ensure!(program == (backend != "nft"), "{backend}: program: {program}");
            let (seen, code) = status()?;
            ensure!(code == Some(0) && seen["backend"] == backend, "{backend}: {seen:#}");
            expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
            expect(&manager, Outcome::Talked, &LISTED[..1])?;
        }
        is_clean("manager0")
    })
}

fn when_a_later_step_fails_the_program_of_before_stays() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let refused = |flags: &[&str]| -> Result<()> {
            // A directory where the new file should be prepared.
            std::fs::create_dir("/etc/agent-fw/policy.toml.new")?;
            let tried = try_install(flags)?;
            ensure!(tried.code == Some(3), "{tried}");
            Ok(std::fs::remove_dir("/etc/agent-fw/policy.toml.new")?)
        };
        install(&flags("xdp", "manager0", &[]))?;
        let before = attached("manager0")?;
        refused(&flags("xdp", "manager0", &["--allow-from", "198.51.100.7"]))?;
        refused(&flags("both", "manager0", &[]))?;
        refused(&flags("xdp", "manager0", &["--xdp-mode", "generic"]))?;
        ensure!(attached("manager0")? == before, "{before:?}, {:?}", attached("manager0")?);
        let (seen, code) = status()?;
        ensure!(code == Some(0), "{seen:#}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn one_interface_that_cannot_be_served_leaves_the_others_as_they_were() -> Result<()> {
    Lab::run(|lab| {
        let _peers = (lab.peer("manager")?, lab.peer("branch")?);
        // Loopback has generic XDP only.
        let tried = try_install(&flags("xdp", "manager0", &["--interface", "lo"]))?;
        ensure!(tried.code == Some(3), "{tried}");
        ensure!(tried.stderr.contains("EOPNOTSUPP"), "{tried}");
        is_clean("manager0")?;
        let tried = try_install(&flags("xdp", "manager0", &["--interface", "nosuch0"]))?;
        ensure!(tried.code == Some(2) && tried.stderr.contains("nosuch0"), "{tried}");
        is_clean("manager0")?;
        install(&flags("xdp", "manager0", &[]))?;
        let before = attached("manager0")?;
        let tried = try_install(&flags("xdp", "manager0", &["--interface", "lo"]))?;
        ensure!(tried.code == Some(3) && attached("manager0")? == before, "{tried}");
        ensure!(status()?.1 == Some(0));
        Ok(())
    })
}

fn after_kill_9_at_any_moment_uninstall_leaves_no_program() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        for delay in (0..60).step_by(2) {
            let argv = [&["install", "--no-boot"], &flags("xdp", "manager0", &[])[..]].concat();
            kill_agent_fw_after(Duration::from_millis(delay), argv)?;
            if delay % 4 == 0 {
                agent_fw(["uninstall", "--yes"])?.success()?;
                is_clean("manager0").with_context(|| format!("killed after {delay} ms"))?;
            } else {
                install(&flags("xdp", "manager0", &[])).context("over what a crash has left")?;
                ensure!(status()?.1 == Some(0));
            }
        }
        Ok(())
    })
}

fn without_a_physical_interface_one_is_to_be_named() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        let tried = try_install(&[&US[..], &["--backend", "xdp"]].concat())?;
        ensure!(tried.code == Some(3) && tried.stderr.contains("--interface"), "{tried}");
        let tried = try_install(&[&US[..], &["--interface", "manager0"]].concat())?;
        ensure!(tried.code == Some(2) && tried.stderr.contains("--backend"), "{tried}");
        is_clean("manager0")
    })
}
