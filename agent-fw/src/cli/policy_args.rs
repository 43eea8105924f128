//! The flags that say what the policy is; `install` and `compile` share them.

use super::outcome::{Failure, Result};
use super::report;
use crate::configuration::{Compiled, Configuration};
use crate::engine::policy;
use crate::input::options::{Backend, Mode, XdpMode};
use crate::input::outbound::Outbound;
use crate::input::{ListFile, Lists, Source};
use crate::model::digest;
use crate::model::{DefaultAction, Port};
use crate::system;
use crate::system::ds_agent;
use anyhow::{Context as _, anyhow};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::str::FromStr;

/// What the policy is.
#[derive(clap::Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct PolicyArgs {
    /// A source that is admitted; repeatable. Without it, any source is
    ///
    /// An address, a prefix (192.0.2.0/24, 192.0.2.0/255.255.255.0, 192.168.0/24), a range
    /// (192.0.2.1-192.0.2.9), region:NAME (see `agent-fw regions list`), file:PATH or file:- (an
    /// item a line, # starts a comment), or `any`.
    #[arg(long, help_heading = "Sources", value_name = "SOURCE")]
    allow_from: Vec<String>,
    /// A source that nothing admits, whatever names it; repeatable
    ///
    /// What --allow-from takes, but `any`. It is taken out of the sources of --allow-from and of
    /// --rules, also when a region's or a list's addresses change. It does not concern --relay.
    #[arg(long, help_heading = "Sources", value_name = "SOURCE")]
    except: Vec<String>,
    /// A MAC address, or file:PATH, that is admitted; repeatable
    ///
    /// With --allow-from too, a packet must match both. Only the neighbour's MAC address is seen:
    /// for packets through a router, the router's.
    #[arg(long, help_heading = "Sources", value_name = "MAC")]
    allow_mac: Vec<String>,
    /// Files of firewall rules in the vendor's API form (JSON), or the same as TOML; repeatable
    ///
    /// What the API answers, as it comes: rules, lists, policies and assignments, in any number of
    /// files. The sources of rules that replace the agent's hidden rule are admitted, beside those
    /// of --allow-from. Where a file has a policy or an assignment, only assigned rules hold.
    /// `agent-fw rules check FILE...` tells what each rule means. `-` is standard input.
    ///
    /// With HOST such as workload.us-1.cloudone.trendmicro.com and an API KEY, each of these is a
    /// file: for A in firewallrules iplists maclists portlists policies/ID; do curl -fsS -H
    /// "Authorization: ApiKey $KEY" -H "api-version: v1" "https://$HOST/api/$A" >
    /// "$(echo $A | tr / -).json"; done
    #[arg(long, help_heading = "Rules", value_name = "FILE", num_args = 1..)]
    rules: Vec<String>,
    /// A file that says which of these rules are assigned to this host; repeatable
    ///
    /// A policy (GET /api/policies/ID), or what GET /api/policies/ID/firewall/rules or
    /// /api/computers/ID/firewall/rules answers. Only these rules hold.
    #[arg(long, help_heading = "Rules", value_name = "FILE")]
    assigned: Vec<String>,
    /// Of several policies or computers in these files, the one that is meant: its name or ID
    #[arg(long, help_heading = "Rules", value_name = "NAME")]
    assigned_policy: Option<String>,
    /// All rules hold, though they carry IDs of a manager and nothing assigns them to this host
    #[arg(long, help_heading = "Rules", conflicts_with_all = ["assigned", "assigned_policy"])]
    all_rules: bool,
    /// Leave out rules that agent-fw cannot enforce, where that cannot open anything
    ///
    /// Rules with a schedule or a context, above all. A Deny or Log Only is not left out, nor is the
    /// last Allow of its direction.
    #[arg(long, help_heading = "Rules")]
    skip_unsupported: bool,
    /// Enforce all rules of these files, as a whole firewall policy
    ///
    /// In tables of its own, inet agent_fw_policy and arp agent_fw_policy, beside the one for the
    /// agent's port; a packet has to pass both. Mind that one Allow rule closes its direction to
    /// all that no rule admits.
    #[arg(long, help_heading = "Rules")]
    policy: bool,
    /// Leave out of the policy the rules that the vendor's engine has of its own
    ///
    /// They are Force Allow with priority 4: outgoing DNS (to port 53), outgoing DHCP (from 68 to
    /// 67), incoming DHCP (from 67 to 68), incoming ICMP type 3 code 4.
    #[arg(long, help_heading = "Rules")]
    no_engine_rules: bool,
    /// An Allow of the policy admits unsolicited UDP
    ///
    /// In the vendor's engine UDP is stateful by default: what an Allow admits has to be a reply,
    /// within 60 seconds there, here for as long as connection tracking knows the request
    /// (net.netfilter.nf_conntrack_udp_timeout). Other UDP needs a Force Allow.
    #[arg(long, help_heading = "Rules")]
    no_stateful_udp: bool,
    /// An Allow of the policy admits ICMP replies alone, as agents up to 8.0 do
    #[arg(long, help_heading = "Rules")]
    stateful_icmp: bool,
    /// Ignore fields of rules that agent-fw does not know
    #[arg(long, help_heading = "Rules")]
    lenient: bool,
    /// On a relay: a source that reaches its port, TCP 4122, and nobody else does; repeatable
    ///
    /// As --allow-from. Without it, that port is left alone. Loopback, and TCP 4123 on it, always
    /// are. In tables of nf_tables, also with --backend both.
    #[arg(long, help_heading = "Sources", value_name = "SOURCE")]
    relay: Vec<String>,
    /// Keep open what the agent needs outbound, whatever the rules of a --policy say
    ///
    /// DNS, NTP, 80 and 443 to any address, relays, and what else `agent-fw ports --role agent`
    /// lists. Everything else is left alone.
    #[arg(long, help_heading = "Direction")]
    restrict_outbound: bool,
    /// Besides, drop what else this host sends out and no rule admits
    ///
    /// But answers, ICMPv6 and loopback. Rules of a --policy open more. It takes
    /// --restrict-outbound along.
    #[arg(long, help_heading = "Direction")]
    default_deny_outbound: bool,
    /// Where a service of your own is, of those that stay open: SERVICE=ADDRESSES; repeatable
    ///
    /// Such as dns-server=192.0.2.53 or relay=file:PATH: what --allow-from takes, or `none`. A
    /// service that is not named may be anywhere. A web proxy has an address and a port, such as
    /// proxy=192.0.2.3:1443, and is reached only if it is named. What has no published addresses,
    /// 443 above all, cannot be narrowed.
    #[arg(long, help_heading = "Direction", value_name = "SERVICE=ADDRESSES")]
    outbound_to: Vec<String>,
    /// The TCP port that the agent listens on
    #[arg(long, help_heading = "Direction", value_name = "PORT", default_value_t = Port::AGENT.0, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Who opens connections; agent-initiated closes the port to all. Without it, bidirectional
    ///
    /// The vendor's default is agent-initiated, and its documents strongly recommend not to change
    /// it. `agent-fw ports` tells what each of them needs, and what speaks for and against it.
    #[arg(long, help_heading = "Direction", value_name = "MODE")]
    direction: Option<Mode>,
    /// What becomes of other sources: dropped, or left to the host's other rules
    #[arg(long, help_heading = "Enforcement", value_name = "WHAT", default_value_t)]
    otherwise: DefaultAction,
    /// Drop refused packets before routing, too, and spare connection tracking
    ///
    /// Only packets that are addressed to this host's agent port as they arrive. A port that a NAT
    /// rule of this host redirects elsewhere is closed by it as well.
    #[arg(long, help_heading = "Enforcement")]
    early_drop: bool,
    /// Write refused packets to the kernel's log, at most 10 a second
    #[arg(long, help_heading = "Enforcement")]
    log: bool,
    /// What enforces it: a table of nf_tables, an XDP program on each interface, or both
    ///
    /// Alone, XDP filters neither what comes by other interfaces or in tunnels, nor packets whose
    /// port a NAT rule of this host changes to the agent's.
    #[arg(long, help_heading = "Enforcement", value_name = "WHAT", default_value_t)]
    backend: Backend,
    /// An interface that gets the XDP program; repeatable. Without it, every physical one that is up
    #[arg(long, help_heading = "Enforcement", value_name = "NAME")]
    interface: Vec<String>,
    /// Admit single ranges that are wider than a /8, or a /16 of IPv6
    ///
    /// Kept in policy.toml. More than half of all addresses are not called closed all the same.
    #[arg(long, help_heading = "Sources")]
    allow_wide: bool,
    /// Read lists and rule files though others than root can change them
    ///
    /// Kept in policy.toml. Whoever can change such a file decides who reaches the port.
    #[arg(long, help_heading = "Sources")]
    trust_file_modes: bool,
    /// Where the XDP program runs: in the driver, or (slower than nft) in the network stack
    #[arg(long, help_heading = "Enforcement", value_name = "MODE", default_value_t)]
    xdp_mode: XdpMode,
}

impl PolicyArgs {
    /// Whether the flags say in so many words that everyone is admitted.
    pub(super) fn say_any(&self) -> bool {
        self.allow_from.iter().any(|source| source == "any")
    }

    /// Whether the flags say who may reach the port.
    fn name_somebody(&self) -> bool {
        let Self { allow_from, allow_mac, rules, direction, .. } = self;
        let is_said = !allow_from.is_empty() || !allow_mac.is_empty() || !rules.is_empty();
        is_said || *direction == Some(Mode::AgentInitiated)
    }

    /// Which direction was taken, and why, where no flag says it.
    pub(super) fn assumed_direction(&self) -> Option<String> {
        self.direction.is_none().then(|| {
            format!(
                "direction: bidirectional, as no --direction says otherwise and who reaches the \
                 agent's port is named. The vendor's default is agent-initiated, which its \
                 documents strongly recommend not to change: no port is open to anybody, but {}",
                Mode::AgentInitiated.demerit()
            )
        })
    }

    /// Fails where no flag says who may reach the port: a flag, or the variable behind it, may have
    /// been forgotten.
    pub(super) fn require_sources(&self) -> Result<()> {
        if self.name_somebody() {
            return Ok(());
        }
        let port = self.port;
        let (region, whose) = suggested_region();
        Err(Failure::Input(anyhow!(
            "nothing says who may reach TCP port {port}: name sources, such as --allow-from \
             {region}{whose}, or say --allow-from any if every source is meant"
        )))
    }

    /// Asks who may reach the port where no flag says so, on a terminal.
    pub(super) fn ask_for_sources(&mut self) -> Result<()> {
        if self.name_somebody() || !std::io::stdin().is_terminal() {
            return Ok(());
        }
        let port = self.port;
        let mut output = std::io::stdout();
        let (region, whose) = suggested_region();
        write!(
            output,
            "Who may reach TCP port {port}? Sources such as {region}{whose}, `any` for everyone: "
        )?;
        output.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        self.allow_from = answer.split_whitespace().map(str::to_owned).collect();
        if self.allow_from.is_empty() {
            return Err(Failure::Input(anyhow!("no source was named; nothing was changed")));
        }
        Ok(())
    }

    /// The configuration that the flags describe.
    pub(super) fn configuration(self) -> Result<Configuration> {
        for (is_given, flag, needs) in [
            (self.no_engine_rules && !self.policy, "--no-engine-rules", "--policy"),
            (self.no_stateful_udp && !self.policy, "--no-stateful-udp", "--policy"),
            (self.stateful_icmp && !self.policy, "--stateful-icmp", "--policy"),
            (self.lenient && self.rules.is_empty(), "--lenient", "--rules"),
            (self.all_rules && self.rules.is_empty(), "--all-rules", "--rules"),
            (self.skip_unsupported && self.rules.is_empty(), "--skip-unsupported", "--rules"),
        ] {
            if is_given {
                return Err(Failure::Input(anyhow!(
                    "{flag} says something about {needs}: name it, too"
                )));
            }
        }
        let mut configuration = self.parsed()?;
        configuration.name_everyone();
        configuration.check().map_err(Failure::Input)?;
        configuration.check_standard_input().map_err(Failure::Input)?;
        Ok(configuration)
    }

    /// The flags that take several values.
    pub(super) fn lists_mut(&mut self) -> [&mut Vec<String>; 8] {
        let Self { allow_from, except, allow_mac, rules, assigned, .. } = self;
        let Self { relay, outbound_to, interface, .. } = self;
        [allow_from, except, allow_mac, rules, assigned, relay, outbound_to, interface]
    }

    /// The same, whether it contradicts itself or not.
    pub(super) fn parsed(self) -> Result<Configuration> {
        let Self { port, otherwise, early_drop, log, .. } = self;
        let direction = self.direction.unwrap_or_default();
        let allow_from = parse_all("--allow-from", &self.allow_from);
        let except = parse_all("--except", &self.except);
        let allow_mac = parse_all("--allow-mac", &self.allow_mac);
        let relay = parse_all("--relay", &self.relay);
        let outbound_to = parse_all("--outbound-to", &self.outbound_to);
        let (allow_from, except, allow_mac, relay, outbound_to) =
            match (allow_from, except, allow_mac, relay, outbound_to) {
                (Ok(from), Ok(except), Ok(macs), Ok(relay), Ok(to)) => {
                    (from, except, macs, relay, to)
                }
                (from, except, macs, relay, to) => {
                    let faults = [from.err(), except.err(), macs.err(), relay.err(), to.err()];
                    let faults: Vec<String> = faults.into_iter().flatten().collect();
                    return Err(Failure::Input(anyhow!(faults.join("\n"))));
                }
            };
        let outbound = match (self.default_deny_outbound, self.restrict_outbound) {
            (true, _) => Outbound::DefaultDeny,
            (false, true) => Outbound::NeedsOpen,
            (false, false) => Outbound::Untouched,
        };
        let Self { backend, interface: interfaces, xdp_mode, policy, lenient, .. } = self;
        let (allow_wide, trust_file_modes) = (self.allow_wide, self.trust_file_modes);
        Ok(Configuration {
            allow_from,
            except,
            allow_mac,
            rules: self.rules.into_iter().map(ListFile::from).collect(),
            assigned: self.assigned.into_iter().map(ListFile::from).collect(),
            assigned_policy: self.assigned_policy.unwrap_or_default(),
            all_rules: Some(self.all_rules),
            skip_unsupported: self.skip_unsupported,
            policy,
            engine_rules: Some(!self.no_engine_rules),
            udp_stateful: Some(!self.no_stateful_udp),
            icmp_stateful: self.stateful_icmp,
            lenient,
            relay,
            outbound,
            outbound_to,
            port,
            direction,
            otherwise,
            early_drop,
            log,
            backend,
            interfaces,
            xdp_mode,
            allow_wide,
            trust_file_modes,
            is_legacy: false,
            lacks_end: false,
        })
    }
}

/// The region of the manager that this host's agent talks to, and that it is that one; else one as
/// an example.
fn suggested_region() -> (String, &'static str) {
    let host = ds_agent::manager();
    let own = host.zip(policy::catalogue().ok()).and_then(|(host, catalogue)| {
        catalogue.region_of_host(&host).map(|(name, _)| name.to_owned())
    });
    own.map_or_else(
        || ("region:us-1".to_owned(), ""),
        |name| (format!("region:{name}"), " (where this host's agent has its manager)"),
    )
}

/// Reads every value of a flag, or says of each that is wrong what is wrong with it.
pub(super) fn parse_all<T>(flag: &str, texts: &[String]) -> std::result::Result<Vec<T>, String>
where
    T: FromStr<Err: std::fmt::Display>,
{
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for text in texts {
        match text.parse() {
            Ok(value) => values.push(value),
            Err(error) => faults.push(format!("{flag} {}: {error}", text.escape_debug())),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults.join("\n")) }
}

impl Configuration {
    /// Writes out what the agent's hidden rule says when flags name nobody.
    fn name_everyone(&mut self) {
        if self.names_nobody() && self.direction != Mode::AgentInitiated {
            self.allow_from.push(Source::Any);
        }
    }

    /// Standard input can be read once.
    pub(super) fn check_standard_input(&self) -> anyhow::Result<()> {
        if self.lists().filter(|list| **list == ListFile::StandardInput).count() > 1 {
            return Err(anyhow!("`-` can be given once: standard input is read once"));
        }
        Ok(())
    }

    /// Keeps lists that the next boot could not read (standard input, pipes) below
    /// [`system::LISTS`], and makes file names absolute.
    pub(super) fn keep_lists(&mut self) -> anyhow::Result<Lists> {
        let mut lists = Lists::trusting(self.trust());
        for source in &mut self.allow_from {
            let name = source.to_string();
            if let Some(list) = source.list_mut() {
                make_lasting(list, &mut lists).with_context(|| format!("--allow-from {name}"))?;
            }
        }
        let services = self.outbound_to.iter_mut().filter_map(|to| to.at.as_mut());
        let except = self.except.iter_mut().map(|source| ("--except", source));
        let sources = except.chain(self.relay.iter_mut().map(|source| ("--relay", source)));
        for (flag, source) in sources.chain(services.map(|source| ("--outbound-to", source))) {
            let name = source.to_string();
            if let Some(list) = source.list_mut() {
                make_lasting(list, &mut lists).with_context(|| format!("{flag} {name}"))?;
            }
        }
        for source in &mut self.allow_mac {
            let name = source.to_string();
            if let Some(list) = source.list_mut() {
                make_lasting(list, &mut lists).with_context(|| format!("--allow-mac {name}"))?;
            }
        }
        for file in &mut self.rules {
            let name = file.to_string();
            make_lasting(file, &mut lists).with_context(|| format!("--rules {name}"))?;
        }
        for file in &mut self.assigned {
            let name = file.to_string();
            make_lasting(file, &mut lists).with_context(|| format!("--assigned {name}"))?;
        }
        Ok(lists)
    }
}

fn make_lasting(list: &mut ListFile, lists: &mut Lists) -> anyhow::Result<()> {
    if !list.is_lasting()? {
        let text = list.read_once()?;
        // Named by its content: the list of the policy in force is not written over.
        let path = Path::new(system::LISTS).join(format!("{}.list", digest(&text)));
        lists.keep(path.clone(), text);
        *list = ListFile::Path(path);
    }
    if let ListFile::Path(path) = list {
        *path = std::path::absolute(&*path)?;
        if path.to_str().is_none() {
            return Err(anyhow!("its name is not UTF-8, which policy.toml could not keep"));
        }
    }
    Ok(())
}

/// Compiles, and says what the user should know.
pub(super) fn compile(configuration: &Configuration, lists: &Lists) -> Result<Compiled> {
    let compiled = policy::compile(configuration, lists)?;
    compiled.notices.iter().for_each(report::notice);
    Ok(compiled)
}
