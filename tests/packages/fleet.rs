//! The Ansible role, on two hosts at once.

use crate::dpkg::{AGENT_FW, LISTED, UNLISTED, ensure_closed, ensure_open, host, outcome};
use crate::tests;
use agent_fw_lab::{Finished, Outcome, Peer, command, package, run};
use anyhow::{Context as _, Result, ensure};
use nix::unistd::{getpid, gettid};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

tests![the_role_brings_a_debian_fleet_to_its_policy_names_who_has_drifted_and_goes];

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent-fw/data/ansible/roles");
const NAMES: [&str; 2] = ["one", "two"];

/// What is done on a host, with its peer at hand.
type Work = Box<dyn FnOnce(&Peer) -> Result<()> + Send>;

/// A host of the fleet, on a thread of its own.
struct Host {
    name: &'static str,
    /// Its namespaces.
    namespaces: String,
    work: Sender<Work>,
    done: Receiver<Result<()>>,
    thread: JoinHandle<Result<()>>,
}

impl Host {
    fn start(name: &'static str) -> Result<Self> {
        let ((work, works), (report, done), (tell, told)) =
            (channel::<Work>(), channel(), channel());
        let thread = thread::spawn(move || {
            host(move |_, peer| {
                tell.send(format!("/proc/{}/task/{}/ns", getpid(), gettid()))?;
                while let Ok(work) = works.recv() {
                    report.send(work(peer))?;
                }
                Ok(())
            })
        });
        let namespaces = told.recv().with_context(|| format!("host {name} has not started"))?;
        Ok(Self { name, namespaces, work, done, thread })
    }

    fn run(&self, work: impl FnOnce(&Peer) -> Result<()> + Send + 'static) -> Result<()> {
        self.work.send(Box::new(work)).ok().context("the host has ended")?;
        self.done.recv().context("the host has ended")?.with_context(|| self.name.to_owned())
    }

    /// Its line of the inventory: modules are run by a python inside.
    fn line(&self) -> String {
        let Self { name, namespaces, .. } = self;
        format!(
            "{name} ansible_connection=local ansible_python_interpreter=\"/usr/bin/nsenter \
             --mount={namespaces}/mnt --net={namespaces}/net /usr/bin/python3\"\n"
        )
    }

    fn end(self) -> Result<()> {
        drop(self.work);
        self.thread.join().ok().context("a host panicked")?
    }
}

/// What Ansible says of a host in the end.
#[derive(Debug, PartialEq, Eq)]
struct Recap {
    changed: u32,
    failed: u32,
}

/// Where Ansible works: its files, and its own.
struct Controller(PathBuf);

impl Controller {
    fn set_up(hosts: &[Host]) -> Result<Self> {
        let place = std::env::temp_dir().join(format!("agent-fw-fleet-{}", std::process::id()));
        fs::create_dir_all(&place)?;
        let lines: String = hosts.iter().map(Host::line).collect();
        fs::write(place.join("inventory"), lines)?;
        let deb = package("newer", ".deb")?.display().to_string();
        let facts = "gather_subset: ['!all', '!min', distribution]";
        let site = format!(
            "- hosts: all\n  {facts}\n  roles:\n    - role: agent_fw\n      agent_fw_deb: {deb}\n      \
             agent_fw_allow_from: ['region:us-1']\n      agent_fw_words: [--untested]\n"
        );
        fs::write(place.join("site.yml"), site)?;
        let verify = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.include_role:\n        \
                      name: agent_fw\n        tasks_from: verify\n";
        fs::write(place.join("verify.yml"), verify)?;
        Ok(Self(place))
    }

    /// Runs a playbook; what became of each host, and what was said.
    fn play(&self, words: &[&str]) -> Result<(Vec<Recap>, String)> {
        let mut ansible = command(["ansible-playbook", "--inventory", "inventory"]);
        ansible.args(words).current_dir(&self.0);
        ansible.env("LC_ALL", "C.UTF-8").env("ANSIBLE_ROLES_PATH", ROLES);
        for (name, place) in [("LOCAL_TEMP", "local"), ("REMOTE_TEMP", "remote"), ("HOME", "home")]
        {
            ansible.env(format!("ANSIBLE_{name}"), self.0.join(place));
        }
        let output = ansible.output().context("cannot start ansible-playbook")?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let said = Finished {
            command: format!("ansible-playbook {}", words.join(" ")),
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        let recaps = NAMES.map(|name| recap(&said.stdout, name).with_context(|| said.to_string()));
        Ok((recaps.into_iter().collect::<Result<_>>()?, said.to_string()))
    }

    /// Runs a playbook that no host may fail.
    fn succeed(&self, words: &[&str]) -> Result<[u32; 2]> {
        let (recaps, said) = self.play(words)?;
        ensure!(recaps.iter().all(|recap| recap.failed == 0), "{said}");
        Ok([recaps[0].changed, recaps[1].changed])
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn recap(said: &str, name: &str) -> Option<Recap> {
    let (_, recaps) = said.split_once("PLAY RECAP")?;
    let line = recaps.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    let number = |key: &str| line.split_once(key)?.1.split(' ').next()?.parse().ok();
    Some(Recap { changed: number("changed=")?, failed: number("failed=")? })
}

fn the_role_brings_a_debian_fleet_to_its_policy_names_who_has_drifted_and_goes() -> Result<()> {
    let hosts = NAMES.into_iter().map(Host::start).collect::<Result<Vec<_>>>()?;
    let controller = Controller::set_up(&hosts)?;
    let on_all = |work: fn(&Peer) -> Result<()>| hosts.iter().try_for_each(|host| host.run(work));

    // A variable that was forgotten changes nothing, and admits nobody.
    for nobody in [r#"{"agent_fw_allow_from": []}"#, r#"{"agent_fw_allow_from": null}"#] {
        let (recaps, said) = controller.play(&["site.yml", "--extra-vars", nobody])?;
        ensure!(recaps.iter().all(|recap| recap.failed == 1 && recap.changed == 0), "{said}");
    }
    let would = controller.succeed(&["--check", "site.yml"])?;
    ensure!(would.iter().all(|changed| *changed > 0), "nothing would change: {would:?}");
    on_all(|_| {
        ensure!(!Path::new(AGENT_FW).exists() && !Path::new("/var/cache/agent-fw.deb").exists());
        Ok(())
    })?;
    let done = controller.succeed(&["site.yml"])?;
    ensure!(done.iter().all(|changed| *changed > 0), "nothing was changed: {done:?}");
    on_all(ensure_closed)?;
    for again in [&["site.yml"][..], &["--check", "site.yml"], &["verify.yml"]] {
        let changed = controller.succeed(again)?;
        ensure!(changed == [0, 0], "{again:?} changed something: {changed:?}");
    }

    // A region's subnets change, everywhere.
    let regions = controller.0.join("regions.toml");
    let ours = "[us-1]\nplace = 'here'\nsubnets = ['198.51.100.0/24']\ndomain = 'a.example'\n\
                as_of = '2026-01-02'\nsource = 'our own'\n";
    fs::write(&regions, ours)?;
    let change = format!("agent_fw_regions={}", regions.display());
    controller.succeed(&["site.yml", "--extra-vars", &change])?;
    on_all(|peer| {
        let seen = (outcome(peer, LISTED)?, outcome(peer, UNLISTED)?);
        ensure!(seen == (Outcome::Silent, Outcome::Talked), "{seen:?}");
        Ok(())
    })?;

    // One host drifts: it is named, until a run has put it right.
    hosts[1].run(|_| run(["nft", "flush", "ruleset"]).map(drop))?;
    for _ in 0..2 {
        let (recaps, said) = controller.play(&["verify.yml"])?;
        ensure!(
            recaps == [Recap { changed: 0, failed: 0 }, Recap { changed: 0, failed: 1 }],
            "{said}"
        );
    }
    let changed = controller.succeed(&["site.yml", "--extra-vars", &change])?;
    ensure!(changed == [0, 1], "{changed:?}");
    ensure!(controller.succeed(&["verify.yml"])? == [0, 0]);

    let absent = ["site.yml", "--extra-vars", "agent_fw_state=absent"];
    let done = controller.succeed(&absent)?;
    ensure!(done.iter().all(|changed| *changed > 0), "nothing was removed: {done:?}");
    on_all(|peer| {
        ensure!(!Path::new(AGENT_FW).exists() && !Path::new("/var/cache/agent-fw.deb").exists());
        ensure_open(peer)
    })?;
    ensure!(controller.succeed(&absent)? == [0, 0], "removed twice");
    drop(controller);
    hosts.into_iter().try_for_each(Host::end)
}
