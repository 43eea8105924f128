//! What runs inside a virtual machine: `guest suite` in systemd's place, `guest orders` as one of
//! its services. `guest suite DIRECTORY` runs the tests of another payload.

use std::fs::{self, File, OpenOptions};
use std::io::BufReader;
use std::os::fd::AsRawFd as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};

use agent_fw_lab::vm::{PAYLOAD, serve};
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let done = match task.as_str() {
        "suite" => suite(&std::env::args().nth(2).map_or_else(|| PAYLOAD.into(), PathBuf::from)),
        "orders" => orders(),
        _ => Err(anyhow::anyhow!("usage: guest suite [DIRECTORY] | guest orders")),
    };
    if let Err(error) = done {
        eprintln!("guest: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs every test binary of the payload, says so, and switches the machine off.
fn suite(payload: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("`guest suite` is the first process of a virtual machine; it would switch this off");
    }
    println!("guest: start");
    match prepare(payload).and_then(|()| run_tests(payload)) {
        Ok(()) => println!("guest: end"),
        Err(error) => println!("guest: {error:#}"),
    }
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot switch off")?;
    Ok(())
}

/// What systemd would have mounted and named.
fn prepare(payload: &Path) -> Result<()> {
    // What is below /tmp is not seen any more, once there is a file system of our own.
    let shadowed = payload.starts_with("/tmp").then(|| File::open("/tmp")).transpose()?;
    for (kind, place) in [
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        // The initial file system has mounted some of them already.
        let mounted = mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>);
        match mounted {
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot mount {place}")),
        }
    }
    if let Some(shadowed) = shadowed {
        bring_back(&shadowed, payload)?;
    }
    fs::write("/proc/sys/kernel/printk", "1").context("cannot quiet the kernel")?;
    // udev makes this device's node, and systemd has the module's name from it.
    // A kernel in user mode has no modules, and this machine perhaps no program for them.
    drop(Command::new("modprobe").args(["--quiet", "tun"]).env("PATH", PATH).status());
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", PATH).status();
    up.context("cannot start ip")?;
    Ok(())
}

/// Shows the workspace that is below the old /tmp at its own place in the new one.
fn bring_back(old: &File, payload: &Path) -> Result<()> {
    let Some(Component::Normal(top)) = payload.components().nth(2) else { return Ok(()) };
    let (from, to) = (format!("/proc/self/fd/{}", old.as_raw_fd()), Path::new("/tmp").join(top));
    fs::create_dir(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let from = Path::new(&from).join(top);
    mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot show {}", to.display()))
}

fn run_tests(payload: &Path) -> Result<()> {
    let arguments = read_lines(payload, "arguments")?;
    let environment = read_lines(payload, "environment")?;
    let environment = environment.iter().filter_map(|line| line.split_once('='));
    let environment: Vec<(&str, &str)> = environment.collect();
    for binary in binaries(payload)? {
        let status = Command::new(&binary)
            .args(&arguments)
            .envs(environment.iter().copied())
            .env("PATH", PATH)
            .current_dir("/tmp")
            .status()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        if !status.success() {
            println!("guest: {} failed ({status})", binary.display());
        }
    }
    Ok(())
}

fn binaries(payload: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(payload.join("tests")).context("there are no tests")?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn read_lines(payload: &Path, name: &str) -> Result<Vec<String>> {
    let path = payload.join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Takes orders from the second serial line.
fn orders() -> Result<()> {
    let line = "/dev/ttyS1";
    let input = File::open(line).with_context(|| format!("cannot open {line}"))?;
    let output = OpenOptions::new().write(true).open(line)?;
    // No echo, no line editing, no translated line ends.
    let mut settings = tcgetattr(&input).context("the line is no terminal")?;
    cfmakeraw(&mut settings);
    tcsetattr(&input, SetArg::TCSANOW, &settings).context("cannot set up the line")?;
    drop(fs::write("/dev/console", "guest: ready\n"));
    serve(BufReader::new(input), output)
}
