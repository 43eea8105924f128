//! The real firewalld, inside a lab.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::{command, output};
use crate::lab::Lab;

/// Ample for a program in Python on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// firewalld with a message bus of its own, as long as this value lives. Its configuration is the
/// lab's.
#[derive(Debug)]
pub struct Firewalld {
    _firewalld: Daemon,
    // Dropped after what hangs on it.
    _bus: Daemon,
}

impl Firewalld {
    /// Starts it with this backend: `nftables` or `iptables`.
    pub fn start(_lab: &Lab, backend: &str) -> Result<Self> {
        let path = "/etc/firewalld/firewalld.conf";
        let configuration = fs::read_to_string(path).context("firewalld is not installed")?;
        let lines = configuration.lines().filter(|line| !line.starts_with("FirewallBackend="));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(path, format!("{lines}FirewallBackend={backend}\n"))?;
        fs::create_dir_all("/run/dbus")?;
        let bus = Daemon::start(&["dbus-daemon", "--system", "--nofork", "--nopidfile"])?;
        wait_for("the message bus", || Ok(Path::new("/run/dbus/system_bus_socket").exists()))?;
        let firewalld = Daemon::start(&["firewalld", "--nofork", "--nopid"])?;
        wait_for("firewalld", || Ok(output(["firewall-cmd", "--state"])?.code == Some(0)))?;
        Ok(Self { _firewalld: firewalld, _bus: bus })
    }
}

fn wait_for(what: &str, is_there: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_there()? {
        ensure!(Instant::now() < deadline, "{what} does not come up");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program that stays, until this value is dropped.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    fn start(argv: &[&str]) -> Result<Self> {
        let mut command = command(argv);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self).with_context(|| format!("cannot start {}", argv.join(" ")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
