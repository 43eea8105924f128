//! Changes while traffic flows.

use crate::scene::{AGENT, PATIENCE, address, admitted, install, status};
use crate::tests;
use agent_fw_lab::{
    Conversation, Lab, Listener, Outcome, Peer, agent_fw, feed, knock, rounds, run,
};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

tests![
    an_established_connection_of_a_source_that_is_no_longer_listed_stops,
    a_listed_connection_goes_on_through_1000_updates_and_nothing_is_lost_or_let_in,
    counters_go_on_through_updates,
];

fn converse(peer: &Peer, source: IpAddr) -> Result<Conversation> {
    peer.add_address(source)?;
    let agent = peer.host_address(source, AGENT);
    peer.enter(|| Conversation::open(source, agent, PATIENCE))?
}

fn an_established_connection_of_a_source_that_is_no_longer_listed_stops() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for (stays, goes) in [("34.205.5.1", "198.51.100.7"), ("2001:db8:1::1", "2001:db8:2::1")] {
            install(&["--allow-from", stays, "--allow-from", goes])?;
            let mut staying = converse(&peer, address(stays))?;
            let mut going = converse(&peer, address(goes))?;
            for conversation in [&mut staying, &mut going] {
                ensure!(conversation.say(PATIENCE)? == Outcome::Talked);
            }
            install(&["--allow-from", stays])?;
            ensure!(staying.say(PATIENCE)? == Outcome::Talked, "{stays} is still listed");
            ensure!(going.say(PATIENCE)? == Outcome::Silent, "{goes} is no longer listed");
        }
        Ok(())
    })
}

/// Counts the packets of both sources to the agent before and behind agent-fw's chains.
const WITNESS: &str = "
table inet witness {
    counter listed_before { }
    counter listed_behind { }
    counter unlisted_behind { }
    chain before {
        type filter hook prerouting priority -400;
        ip saddr 34.205.5.1 tcp dport 4118 counter name listed_before
    }
    chain behind {
        type filter hook input priority 2147483647;
        ip saddr 34.205.5.1 tcp dport 4118 counter name listed_behind
        ip saddr 198.51.100.7 tcp dport 4118 counter name unlisted_behind
    }
}
";

/// What a counter of the witness has counted.
fn witnessed(counter: &str) -> Result<u64> {
    let text = run(["nft", "list", "counter", "inet", "witness", counter])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    Ok(words.next().context("no count")?.parse()?)
}

fn a_listed_connection_goes_on_through_1000_updates_and_nothing_is_lost_or_let_in() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let (listed, unlisted) = (address("34.205.5.1"), Ipv4Addr::new(198, 51, 100, 7));
        let count = rounds(1000);
        install(&["--allow-from", "region:us-1"])?;
        feed(["nft", "-f", "-"], WITNESS)?;
        peer.add_address(unlisted.into())?;
        let mut conversation = converse(&peer, listed)?;
        let done = AtomicBool::new(false);
        let (said, tried) = std::thread::scope(|scope| -> Result<(u64, u64)> {
            let talking = scope.spawn(|| peer.enter(|| talk(&mut conversation, &done))?);
            let knocking = scope.spawn(|| peer.enter(|| knock(&peer, unlisted, AGENT, &done))?);
            let updated = update(count);
            done.store(true, Ordering::Relaxed);
            let said = talking.join().ok().context("the listed source panicked")??;
            let tried = knocking.join().ok().context("the unlisted source panicked")??;
            updated.map(|()| (said, tried))
        })?;
        println!("{count} updates, {said} things said and heard, {tried} SYNs refused");
        ensure!(said > 1000 && tried > 1000, "too little traffic: {said}, {tried}");
        let counts =
            || -> Result<_> { Ok((witnessed("listed_before")?, witnessed("listed_behind")?)) };
        let (mut before, mut behind) = counts()?;
        let deadline = Instant::now() + Duration::from_secs(5);
        // A last acknowledgement may come between the two; a packet that was lost never does.
        while before != behind && Instant::now() < deadline {
            (before, behind) = counts()?;
        }
        ensure!(before == behind, "{before} packets came, {behind} got through");
        let let_in = witnessed("unlisted_behind")?;
        ensure!(let_in == 0, "{let_in} packets were let in");
        let counted = admitted(&status()?.0, "region us-1");
        println!("{before} packets of the listed source, none lost");
        // Those of the handshake came before the witness.
        ensure!(counted >= before && counted < before + 4, "{before} came, {counted} were counted");
        Ok(())
    })
}

const US: [&str; 2] = ["--allow-from", "region:us-1"];

/// Updates of every kind: the same policy applied again, a larger one, one with an early check.
fn update(count: u32) -> Result<()> {
    for round in 0..count {
        match round % 4 {
            0 => install(&[&US[..], &["--allow-from", "192.0.2.0/24"]].concat())?,
            1 => agent_fw(["apply"])?.success()?,
            2 => install(&[&US[..], &["--early-drop"]].concat())?,
            _ => install(&[&US[..], &["--log"]].concat())?,
        };
    }
    Ok(())
}

/// Talks until `done`, and fails if an answer does not come.
pub(crate) fn talk(conversation: &mut Conversation, done: &AtomicBool) -> Result<u64> {
    let mut said = 0;
    while !done.load(Ordering::Relaxed) {
        let outcome = conversation.say(Duration::from_secs(5))?;
        ensure!(outcome == Outcome::Talked, "after {said} things: {outcome}");
        said += 1;
    }
    Ok(said)
}

fn counters_go_on_through_updates() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        crate::scene::expect(&peer, Outcome::Talked, &["34.205.5.1"])?;
        crate::scene::expect(&peer, Outcome::Silent, &["198.51.100.7"])?;
        let (before, _) = status()?;
        let counted = admitted(&before, "region us-1");
        ensure!(counted > 0);
        agent_fw(["apply"])?.success()?;
        install(&["--allow-from", "region:us-1", "--allow-from", "region:de-1"])?;
        let (after, _) = status()?;
        ensure!(admitted(&after, "region us-1") == counted, "{before:#} became {after:#}");
        ensure!(after["refused"] == before["refused"], "{before:#} became {after:#}");
        Ok(())
    })
}
