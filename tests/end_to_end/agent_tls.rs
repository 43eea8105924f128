//! `agent-fw doctor` and TLS on the agent's port, with OpenSSL as the agent.

use crate::scene::{AGENT, check, install};
use crate::tests;
use agent_fw::model::Port;
use agent_fw::system::ds_agent;
use agent_fw_lab::{Lab, Listener, command, run};
use anyhow::{Result, ensure};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

tests![
    doctor_names_version_and_suite_and_the_agents_that_offer_it,
    doctor_notes_a_suite_that_no_published_agent_offers,
    doctor_says_what_it_means_that_nothing_is_agreed_to,
    doctor_learns_version_and_suite_from_an_agent_that_asks_for_a_certificate,
    doctor_warns_of_a_listener_that_speaks_no_tls_or_hangs,
];

const NAME: &str = "TLS on the agent's port";

/// What an agent of today chooses first.
pub(crate) const TODAY: [&str; 3] = ["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"];

/// A TLS server on the agent's port, until it is dropped.
pub(crate) struct TlsServer(Child);

impl TlsServer {
    /// Starts it with these options of `openssl s_server`.
    pub(crate) fn start(options: &[&str]) -> Result<Self> {
        let (key, certificate) = ("/run/agent.key", "/run/agent.pem");
        run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
            .into_iter()
            .chain(["-subj", "/CN=agent", "-keyout", key, "-out", certificate]))?;
        let child = command(["openssl", "s_server", "-quiet", "-accept", &AGENT.to_string()])
            .args(["-key", key, "-cert", certificate])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while ds_agent::listeners(Port(AGENT)).is_empty() {
            ensure!(Instant::now() < deadline, "openssl does not listen: {options:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Demands how the check comes out with an agent that has these options, and what it says.
fn expect(options: &[&str], health: &str, parts: &[&str]) -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let _agent = TlsServer::start(options)?;
        let (found, seen) = check(NAME)?;
        ensure!(found == health, "{options:?}: {found}: {seen}");
        for part in parts {
            ensure!(seen.contains(part), "{options:?}: {part} is not in: {seen}");
        }
        Ok(())
    })
}

fn doctor_names_version_and_suite_and_the_agents_that_offer_it() -> Result<()> {
    let suite = "TLS 1.2 with TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    expect(&TODAY, "good", &[suite, "agents 11.0 from Update 6, 12.0 and 20 offer"])?;
    let short = ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"];
    expect(&short, "good", &["TLS 1.2 with TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"])
}

fn doctor_notes_a_suite_that_no_published_agent_offers() -> Result<()> {
    let none = "which no published version of the agent offers";
    let chacha = ["-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"];
    expect(&chacha, "note", &["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", none])?;
    expect(&["-tls1_3"], "note", &["TLS 1.3 with TLS_", none])
}

fn doctor_says_what_it_means_that_nothing_is_agreed_to() -> Result<()> {
    let cbc = ["-tls1_2", "-cipher", "AES256-SHA256"];
    expect(&cbc, "note", &["no version and suite in common", "HandshakeFailure"])
}

fn doctor_learns_version_and_suite_from_an_agent_that_asks_for_a_certificate() -> Result<()> {
    let suite = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    expect(&[&TODAY[..], &["-Verify", "1"]].concat(), "good", &[suite, "then it ended"])
}

fn doctor_warns_of_a_listener_that_speaks_no_tls_or_hangs() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        {
            let _echo = Listener::bind(AGENT)?;
            let (health, seen) = check(NAME)?;
            ensure!(health == "bad" && seen.contains("the answer is no TLS"), "{seen}");
        }
        let _mute = TcpListener::bind(("127.0.0.1", AGENT))?;
        let (health, seen) = check(NAME)?;
        ensure!(health == "bad" && seen.contains("no answer within 5 s"), "{seen}");
        Ok(())
    })
}
