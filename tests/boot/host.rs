//! The machine: a Debian that an administrator has set up, with a stand-in for the agent that
//! listens from the first moment.

use crate::installed_before;
use crate::neighbour::{GATEWAY, MACHINE, MACHINE_MAC_TEXT, Neighbour, Seen, TAP};
use agent_fw_lab::package;
use agent_fw_lab::vm::{Console, Image, Kernel, Machine, Orders, PAYLOAD, Parts, Payload};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// A boot takes some ten seconds, on a busy machine many more.
pub(crate) const BOOT: Duration = Duration::from_mins(2);
/// A command inside.
const COMMAND: Duration = Duration::from_mins(2);

/// What listens: systemd holds the socket, from before the network is there.
const AGENT_SOCKET: &str = "[Unit]
DefaultDependencies=no
Before=sysinit.target network-pre.target
[Socket]
ListenStream=0.0.0.0:4118
Accept=yes
Backlog=4096
[Install]
WantedBy=sysinit.target
";
const AGENT_SERVICE: &str = "[Service]\nExecStart=/bin/true\nStandardInput=socket\n";
const ORDERS_SERVICE: &str = "[Unit]
After=multi-user.target
[Service]
ExecStart=/opt/agent-fw/guest orders
";
const SYSTEM: &str = "/etc/systemd/system";

/// Where the packages are, inside: an older one, and a newer.
pub(crate) const OLDER: &str = "/opt/agent-fw/older.deb";
pub(crate) const NEWER: &str = "/opt/agent-fw/newer.deb";

fn payload() -> Result<Payload> {
    // Whatever its name is by then.
    let network = format!(
        "[Match]\nMACAddress={MACHINE_MAC_TEXT}\n[Network]\nAddress={MACHINE}/24\nGateway={GATEWAY}\n"
    );
    Ok(installed_before::files(Payload::default())
        .copy(OLDER, &package("older", ".deb")?)
        .copy(NEWER, &package("newer", ".deb")?)
        .copy(format!("{PAYLOAD}/guest"), Path::new(env!("CARGO_BIN_EXE_guest")))
        .text("/etc/systemd/network/10-card.network", network)
        .link(
            format!("{SYSTEM}/multi-user.target.wants/systemd-networkd.service"),
            "/lib/systemd/system/systemd-networkd.service",
        )
        .text(format!("{SYSTEM}/agent.socket"), AGENT_SOCKET)
        .text(format!("{SYSTEM}/agent@.service"), AGENT_SERVICE)
        .link(format!("{SYSTEM}/sysinit.target.wants/agent.socket"), "../agent.socket")
        .text(format!("{SYSTEM}/orders.service"), ORDERS_SERVICE)
        .link(format!("{SYSTEM}/multi-user.target.wants/orders.service"), "../orders.service")
        .text("/etc/hostname", "agent\n"))
}

/// A disk for such a machine.
pub(crate) fn disk(parts: &Parts, name: &str) -> Result<Image> {
    Image::make(parts, name, &payload()?)
}

/// What a machine is made of: the same at each of its boots.
#[derive(Clone, Copy)]
pub(crate) struct Build<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) kernel: Kernel,
    pub(crate) image: &'a Image,
    pub(crate) name: &'a str,
}

/// The machine, while it is on.
pub(crate) struct Host<'a> {
    build: Build<'a>,
    console: Console,
    orders: Orders,
}

impl<'a> Host<'a> {
    /// Switches it on, in the lab of the calling thread, and waits until systemd has started
    /// everything.
    pub(crate) fn start(build: Build<'a>) -> Result<Self> {
        let Build { parts, kernel, image, name } = build;
        let machine = Machine::new(parts, kernel, image, name).tap(TAP, MACHINE_MAC_TEXT);
        let mut console = machine.orders().start()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let orders = loop {
            match console.orders() {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(orders) => break orders,
            }
        };
        console.wait_for("guest: ready", BOOT)?;
        Ok(Self { build, console, orders })
    }

    /// Has it do something that ends in a restart, and waits until it is up again.
    pub(crate) fn restart(mut self, argv: &[&str]) -> Result<Self> {
        self.orders.send(argv)?;
        let build = self.build;
        self.console.wait_for_end(BOOT)?;
        Self::start(build)
    }

    /// Runs a command, which must succeed.
    pub(crate) fn run(&mut self, argv: &[&str]) -> Result<String> {
        let said = self.orders.run(argv, COMMAND);
        said.with_context(|| format!("the console: {}", self.console.log().display()))
    }

    /// Runs the lines of a script, each of which must succeed.
    pub(crate) fn script(&mut self, lines: &str) -> Result<String> {
        self.run(&["sh", "-e", "-c", lines])
    }

    /// Runs a command again and again until it succeeds.
    pub(crate) fn run_until_true(&mut self, argv: &[&str]) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        loop {
            let answer = self.orders.try_run(argv, COMMAND)?;
            if answer.code == Some(0) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "`{}`: {answer:?}", argv.join(" "));
        }
    }

    /// What the machine says of itself, for whoever reads a failure.
    fn diagnosis(&mut self) -> String {
        let questions = [
            "ss -ltn",
            "systemctl --no-pager status agent-fw agent.socket",
            "journalctl --no-pager --lines 20 --unit agent-fw",
            "agent-fw status",
            "ip -statistics address show eth0",
            "nstat -az TcpExtListenDrops TcpExtListenOverflows TcpExtTCPReqQFullDrop",
        ];
        let ask = |question: &str| {
            let argv: Vec<&str> = question.split(' ').collect();
            let answer = self.orders.try_run(&argv, COMMAND);
            format!("# {question}\n{}\n", answer.map_or_else(|e| e.to_string(), |a| a.said))
        };
        questions.into_iter().map(ask).collect()
    }

    /// Cuts the power in the middle of something, and switches it on again.
    pub(crate) fn cut(mut self, argv: &[&str], after: Duration) -> Result<Self> {
        self.orders.send(argv)?;
        std::thread::sleep(after);
        let build = self.build;
        self.console.cut()?;
        Self::start(build)
    }

    /// Demands that the listed source is answered from now on, and that the other one never was
    /// since `unlisted` answers.
    pub(crate) fn is_closed(&mut self, neighbour: &Neighbour, unlisted: u64) -> Result<()> {
        let before = neighbour.seen();
        let log = self.console.log().display().to_string();
        let more = |seen: Seen| seen.listed > before.listed + 5;
        let answered = neighbour.wait("the listed source is answered", COMMAND, more);
        let seen = answered.with_context(|| format!("the console: {log}\n{}", self.diagnosis()))?;
        let let_in = seen.unlisted - unlisted;
        ensure!(let_in == 0, "{let_in} unlisted SYNs were answered; the console: {log}");
        Ok(())
    }
}
