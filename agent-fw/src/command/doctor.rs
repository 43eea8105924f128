//! `agent-fw doctor`: what on this host may keep manager and agent apart, or let others in.

use super::explain::{Answer, Sessions, samples};
use super::kernel::Held;
use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use super::status::wanted;
use super::{Patience, road};
use crate::configuration::{Compiled, Configuration, Mode};
use crate::host::{agent, interface, lock, privilege};
use crate::nft::Nftables;
use crate::policy::{Label, Port, Verdict};
use crate::probe::{self, Conclusion, Outbound, Question, Road};
use crate::source::{OBSOLETE, OVERRIDES, admits_obsolete};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde_json::{Value, json};
use std::net::ToSocketAddrs as _;
use std::path::Path;

/// Checks what may keep manager and agent apart on this host, or let others in
///
/// Each check says what was seen, why it matters and what to do. Exit code 1 if something needs
/// attention. Not checked: TLS on the agent's port, and whether ICMP errors for the path's MTU come
/// in.
#[derive(clap::Args, Debug)]
pub(super) struct Doctor {
    /// Ask the resolver for the host names of the regions that are admitted
    #[arg(long)]
    online: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    patience: Patience,
}

const OBSOLETE_CHECK: &str = "the obsolete block";

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Health {
    Good,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something needs attention.
    Bad,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Check {
    name: &'static str,
    health: Health,
    seen: String,
    why: &'static str,
    advice: Option<String>,
}

impl Check {
    fn new(name: &'static str, why: &'static str, health: Health, seen: impl Into<String>) -> Self {
        Self { name, health, seen: seen.into(), why, advice: None }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    fn print(&self) {
        match self.health {
            Health::Good => report::good("good", self.name),
            Health::Note => report::caution("note", self.name),
            Health::Bad => report::bad("bad ", self.name),
        }
        say!("{}", report::wrapped("     ", "     ", &self.seen));
        if self.health != Health::Good {
            say!("{}", report::wrapped("     why: ", "          ", self.why));
        }
        if let Some(advice) = &self.advice {
            say!("{}", report::wrapped("     do:  ", "          ", advice));
        }
    }

    fn to_json(&self) -> Value {
        let health = match self.health {
            Health::Good => "good",
            Health::Note => "note",
            Health::Bad => "bad",
        };
        let Self { name, seen, why, advice, .. } = self;
        json!({ "check": name, "health": health, "seen": seen, "why": why, "advice": advice })
    }
}

impl Doctor {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("doctor")?;
        let _lock = lock::acquire("doctor", self.patience.duration())?;
        probe::clear();
        let installed = match wanted() {
            Ok(installed) => installed,
            Err(Failure::Input(error) | Failure::System(error)) => {
                return Err(Failure::Input(error.context("the installed policy is faulty")));
            }
        };
        let port = installed.as_ref().map_or(Port::AGENT, |(known, _)| Port(known.port));
        let mut checks = Vec::new();
        checks.push(enforcement(installed.as_ref())?);
        checks.push(listening(installed.as_ref().map(|(known, _)| known), port));
        checks.push(own_rules(port));
        if let Some((configuration, compiled)) = &installed {
            checks.extend(promises(configuration, compiled));
            checks.extend(obsolete(compiled));
            checks.push(versions(compiled));
        }
        checks.extend(outbound());
        checks.extend(interfaces(installed.as_ref().map(|(known, _)| known))?);
        checks.push(kernel());
        if self.online {
            checks.extend(installed.iter().flat_map(|(_, compiled)| names(compiled)));
        }
        let is_well = checks.iter().all(|check| check.health != Health::Bad);
        if self.json {
            let checks: Vec<Value> = checks.iter().map(Check::to_json).collect();
            say!("{:#}", json!({ "well": is_well, "checks": checks }));
        } else {
            checks.iter().for_each(Check::print);
        }
        Ok(if is_well { Outcome::Done } else { Outcome::False })
    }
}

/// Whether the kernel has what was installed.
fn enforcement(installed: Option<&(Configuration, Compiled)>) -> Result<Check> {
    let check = |health, seen: String| {
        let why = "without it the agent's hidden rule opens its port to every address";
        Check::new("the policy is enforced", why, health, seen)
    };
    let Some((configuration, compiled)) = installed else {
        let none = check(Health::Bad, "no policy is installed".to_owned());
        return Ok(none.advise("agent-fw install --allow-from region:NAME"));
    };
    let held = Held::read(&mut Nftables::open()?)?;
    let differing = held.differences(configuration, compiled);
    let policy = &compiled.lowered.policy;
    Ok(match differing.first() {
        Some(first) => check(Health::Bad, format!("the kernel differs: {first}"))
            .advise("agent-fw verify tells all of it; agent-fw apply puts it right"),
        None if !policy.closes() => {
            let seen = "the policy leaves the port to everyone, or to other rules";
            check(Health::Note, seen.to_owned())
        }
        None => check(Health::Good, format!("the kernel has policy {}", policy.hash())),
    })
}

/// The agent, and whether it does what the direction says.
fn listening(configuration: Option<&Configuration>, port: Port) -> Check {
    let why = "the manager reaches the agent only where it listens; an agent that opens all \
               connections itself does not listen";
    let processes = agent::processes();
    let is_listening = !agent::listeners(port).is_empty();
    let process = match processes.as_slice() {
        [] => "no process ds_agent runs here".to_owned(),
        [first, ..] => format!("ds_agent runs (process {first})"),
    };
    let listens = if is_listening { "something listens" } else { "nothing listens" };
    let seen = format!("{process}; {listens} on TCP {port}");
    let check = |health| Check::new("the agent and its port", why, health, seen.clone());
    match configuration.map(|known| known.direction) {
        None => check(Health::Note),
        Some(Mode::AgentInitiated) if is_listening => check(Health::Note).advise(
            "the policy says agent-initiated and closes the port; in the manager, check the \
             computer's communication direction",
        ),
        Some(Mode::AgentInitiated) => check(Health::Good),
        Some(_) if !is_listening => check(Health::Bad).advise(
            "start the agent, or check its communication direction; --port where it listens on \
             another port",
        ),
        Some(_) => check(Health::Good),
    }
}

/// The rules that the agent itself adds.
fn own_rules(port: Port) -> Check {
    let why = "the agent adds rules to iptables that open its ports to every address, unless the \
               file is there; agent-fw closes its port all the same, a relay's 4122 stays open";
    let name = "the agent's own iptables rules";
    let is_left_alone = Path::new(agent::LEAVE_IPTABLES).exists();
    let file = format!(
        "{} is {}",
        agent::LEAVE_IPTABLES,
        if is_left_alone { "there" } else { "not there" }
    );
    let rules = agent::own_rules(port);
    if rules.is_empty() {
        let is_well = is_left_alone || agent::processes().is_empty();
        let health = if is_well { Health::Good } else { Health::Note };
        return Check::new(name, why, health, format!("{file}; no such rule is there"));
    }
    let rules: Vec<String> =
        rules.iter().map(|(program, rule)| format!("`{rule}` ({program})")).collect();
    Check::new(name, why, Health::Note, format!("{file}; {}", rules.join(", "))).advise(format!(
        "touch {} before the agent starts, so that it adds none",
        agent::LEAVE_IPTABLES
    ))
}

/// Whether the policy admits addresses that have not been the vendor's for years.
fn obsolete(compiled: &Compiled) -> Option<Check> {
    let why = "\"Deep Security as a Service\" left these addresses about 2019: they may be \
               anybody's now";
    let policy = &compiled.lowered.policy;
    if policy.admits_everyone() {
        return None;
    }
    let is_admitted = policy.admissions().iter().any(|a| admits_obsolete(&a.addresses));
    Some(if is_admitted {
        Check::new(OBSOLETE_CHECK, why, Health::Bad, format!("the policy admits {OBSOLETE}"))
            .advise("name the region instead (region:NAME), or leave these addresses out")
    } else {
        let seen = format!("the policy does not admit {OBSOLETE}");
        Check::new(OBSOLETE_CHECK, why, Health::Good, seen)
    })
}

/// Closed and open, asked of the kernel.
fn promises(configuration: &Configuration, compiled: &Compiled) -> Vec<Check> {
    const MOST: usize = 32;
    let policy = &compiled.lowered.policy;
    let port = Port(configuration.port);
    let mut sessions = Sessions::default();
    let sources = samples(policy, MOST).sources.into_iter();
    let answers = sources.map(|(source, mac)| {
        let question = Question { source, mac, destination: None, port, interface: None };
        Answer::to(&question, policy, &mut sessions)
    });
    answers.map(|answer| promise(&answer)).collect()
}

fn promise(answer: &Answer) -> Check {
    let admitted = answer.due == Verdict::Accept;
    let (name, why) = if admitted {
        ("an admitted source", "an admitted source must pass every other rule of this host, too")
    } else {
        ("a source that is not admitted", "no other source may reach the port")
    };
    let source = answer.source;
    match &answer.found {
        Err(error) => {
            let seen = format!("{source} could not be tried: {error:#}");
            Check::new(name, why, Health::Note, seen)
        }
        Ok((case, road)) => {
            let (interface, became) = (&case.interface.name, road::conclusion(road));
            let is_good = answer.is_as_promised();
            let health = if is_good { Health::Good } else { Health::Bad };
            let check =
                Check::new(name, why, health, format!("{source}, by {interface}: {became}"));
            if is_good {
                return check;
            }
            check.advise(format!("agent-fw explain --from {source} shows the road"))
        }
    }
}

/// IPv6, and what the policy says of it.
fn versions(compiled: &Compiled) -> Check {
    let why = "a manager that comes by IPv6 needs a source of IPv6 in the policy";
    let has_v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let is_reachable = has_v6 && addresses.lines().any(|line| !line.ends_with(" lo"));
    let admits = compiled.lowered.policy.admissions().iter().any(|a| !a.addresses.v6.is_empty());
    let seen = match (is_reachable, admits) {
        (true, true) => "this host has IPv6, and the policy admits sources of it",
        (true, false) => "this host has IPv6; the policy admits no source of it",
        (false, _) => "this host has no IPv6 but on loopback",
    };
    Check::new("IPv6", why, Health::Good, seen)
}

/// What this host's own rules do with what the agent sends to the outside.
fn outbound() -> [Check; 2] {
    let https = "the agent needs TCP 443 to every address: the Smart Protection Network's \
                 addresses are not published";
    let names = "the agent finds its manager by name";
    [
        gets_out("outbound TCP 443", https, Outbound::tcp(Port(443))),
        gets_out("outbound UDP 53 (DNS)", names, Outbound::udp(Port(53))),
    ]
}

fn gets_out(name: &'static str, why: &'static str, asked: anyhow::Result<Road>) -> Check {
    match asked {
        Err(error) => {
            Check::new(name, why, Health::Note, format!("it could not be tried: {error:#}"))
        }
        Ok(road) if road.conclusion == Conclusion::Reaches => {
            Check::new(name, why, Health::Good, "this host's own rules let it out")
        }
        Ok(road) => Check::new(name, why, Health::Bad, road::conclusion(&road))
            .advise("let it out in that firewall, to every address"),
    }
}

/// Facts of interfaces that matter to XDP.
fn interfaces(configuration: Option<&Configuration>) -> Result<Vec<Check>> {
    let wanted = configuration.filter(|known| known.backend.has_programs());
    let why = "the XDP program must be on every interface by which the agent is reached";
    let all = interface::list()?;
    let named = wanted.map_or(&[][..], |known| &known.interfaces);
    let missing = named.iter().filter(|name| !all.iter().any(|known| known.name == **name));
    let missing = missing.map(|name| {
        let seen = format!("{name} is not there; the policy names it");
        Check::new("an interface", why, Health::Bad, seen)
            .advise("agent-fw install names them anew")
    });
    let shown = all.iter().filter(|i| i.is_physical() || named.contains(&i.name));
    let found = shown.map(|interface| {
        let directory = Path::new("/sys/class/net").join(&interface.name);
        let driver = std::fs::read_link(directory.join("device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let driver = driver.unwrap_or_else(|| "no driver of its own".to_owned());
        let queues = std::fs::read_dir(directory.join("queues")).map_or(0, |entries| {
            let is_rx = |name: std::ffi::OsString| name.to_string_lossy().starts_with("rx-");
            entries.flatten().filter(|entry| is_rx(entry.file_name())).count()
        });
        let xdp = interface.xdp.map_or_else(
            || "no XDP program".to_owned(),
            |xdp| format!("{} XDP program {}", xdp.place, xdp.program),
        );
        let (name, mtu) = (&interface.name, interface.mtu);
        let state = if interface.is_up { "up" } else { "down" };
        let seen = format!("{name}: {state}, {driver}, MTU {mtu}, {queues} receive queues, {xdp}");
        let is_down = !interface.is_up && named.contains(name);
        Check::new("an interface", why, if is_down { Health::Note } else { Health::Good }, seen)
    });
    Ok(missing.chain(found).collect())
}

/// What the kernel has of what agent-fw can use.
fn kernel() -> Check {
    let why = "what is missing here narrows what agent-fw can do: bpffs and BTF for XDP, \
               /dev/net/tun for explain";
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let bpffs = statfs("/sys/fs/bpf").is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    let features = [
        ("nf_tables", true),
        ("bpffs", bpffs),
        ("BTF", Path::new("/sys/kernel/btf/vmlinux").exists()),
        ("/dev/net/tun", Path::new("/dev/net/tun").exists()),
    ];
    let missing: Vec<&str> =
        features.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Check::new("the kernel", why, Health::Good, format!("Linux {release}, all there"));
    }
    let seen = format!("Linux {release}, without {}", missing.join(", "));
    Check::new("the kernel", why, Health::Note, seen)
}

/// Whether the host names of the admitted regions resolve.
fn names(compiled: &Compiled) -> Vec<Check> {
    let why = "the agent finds its manager by these names";
    let labels = compiled.lowered.ledger.labels().iter();
    let regions = labels.filter_map(|label| match label {
        Label::Region(name) => Some(name),
        _ => None,
    });
    regions
        .map(|region| {
            let name = format!("agents.workload.{region}.cloudone.trendmicro.com");
            match (name.as_str(), 443).to_socket_addrs() {
                Ok(found) => {
                    let seen = format!("{name} has {} addresses", found.count());
                    Check::new("the region's names", why, Health::Good, seen)
                }
                Err(error) => {
                    let seen = format!("{name} does not resolve: {error}");
                    Check::new("the region's names", why, Health::Bad, seen).advise(format!(
                        "check the resolver (/etc/resolv.conf), or the region's name against \
                         {OVERRIDES}"
                    ))
                }
            }
        })
        .collect()
}
