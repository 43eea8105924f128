//! What runs inside a virtual machine: `guest suite` in systemd's place, `guest orders` as one of
//! its services.

use std::fs::{self, File, OpenOptions};
use std::io::BufReader;
use std::path::{Path, PathBuf};
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
        "suite" => suite(),
        "orders" => orders(),
        _ => Err(anyhow::anyhow!("usage: guest suite | guest orders")),
    };
    if let Err(error) = done {
        eprintln!("guest: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs every test binary of the payload, says so, and switches the machine off.
fn suite() -> Result<()> {
    if std::process::id() != 1 {
        bail!("`guest suite` is the first process of a virtual machine; it would switch this off");
    }
    println!("guest: start");
    match prepare().and_then(|()| run_tests()) {
        Ok(()) => println!("guest: end"),
        Err(error) => println!("guest: {error:#}"),
    }
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot switch off")?;
    Ok(())
}

/// What systemd would have mounted and named.
fn prepare() -> Result<()> {
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
    fs::write("/proc/sys/kernel/printk", "1").context("cannot quiet the kernel")?;
    // udev makes this device's node, and systemd has the module's name from it.
    for argv in [&["modprobe", "tun"][..], &["ip", "link", "set", "lo", "up"]] {
        let done = Command::new(argv[0]).args(&argv[1..]).env("PATH", PATH).status();
        done.with_context(|| format!("cannot start {}", argv[0]))?;
    }
    Ok(())
}

fn run_tests() -> Result<()> {
    let arguments = read_lines("arguments")?;
    let environment = read_lines("environment")?;
    let environment = environment.iter().filter_map(|line| line.split_once('='));
    let environment: Vec<(&str, &str)> = environment.collect();
    for binary in binaries()? {
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

fn binaries() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(Path::new(PAYLOAD).join("tests")).context("there are no tests")?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn read_lines(name: &str) -> Result<Vec<String>> {
    let path = Path::new(PAYLOAD).join(name);
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
