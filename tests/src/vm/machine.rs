//! A machine that runs: its process (QEMU's), its console, its end.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Accelerator, Image, Kernel, Orders, Parts};

/// Memory of a machine, in MiB.
const MEMORY: &str = "1024";

/// What every kernel is told. With its own polling for sent packets, the network card's driver now
/// and then loops for ever while the kernel goes down; Linux has it right since commit 0d0eff39ceb3
/// (August 2026).
const KERNEL_ARGUMENTS: &str = "console=ttyS0 root=/dev/vda rw panic=-1 quiet nokaslr \
                                net.ifnames=0 virtio_net.napi_tx=0";

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine<'a> {
    parts: &'a Parts,
    kernel: Kernel,
    image: &'a Image,
    name: String,
    throwaway: bool,
    init: Vec<String>,
    tap: Option<(String, String)>,
    orders: bool,
}

impl<'a> Machine<'a> {
    /// A machine of this name, with this disk.
    #[must_use]
    pub fn new(parts: &'a Parts, kernel: Kernel, image: &'a Image, name: &str) -> Self {
        let (name, init, tap) = (name.to_owned(), Vec::new(), None);
        let (throwaway, orders) = (false, false);
        Self { parts, kernel, image, name, throwaway, init, tap, orders }
    }

    /// What it writes to its disk is lost at its end.
    #[must_use]
    pub fn throwaway(self) -> Self {
        Self { throwaway: true, ..self }
    }

    /// Runs this program instead of systemd.
    #[must_use]
    pub fn init<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Self {
        Self { init: argv.into_iter().map(Into::into).collect(), ..self }
    }

    /// Connects its network card to this tap interface of the calling thread's namespace. The card
    /// has this MAC address.
    #[must_use]
    pub fn tap(self, interface: &str, mac: &str) -> Self {
        Self { tap: Some((interface.to_owned(), mac.to_owned())), ..self }
    }

    /// Has a second serial line, by which it takes [`Orders`].
    #[must_use]
    pub fn orders(self) -> Self {
        Self { orders: true, ..self }
    }

    /// Switches it on.
    pub fn start(self) -> Result<Console> {
        let log = self.parts.logs.join(format!("{}.log", self.name));
        let socket = self.parts.logs.join(format!("{}.orders", self.name));
        let mut qemu = self.command(&socket)?;
        let errors = File::create(log.with_extension("qemu")).context("cannot make a log")?;
        let mut console = Console::of(qemu.stdin(Stdio::null()).stderr(errors), &log)?;
        console.orders = self.orders.then_some(socket);
        Ok(console)
    }

    fn command(&self, socket: &Path) -> Result<Command> {
        let root = &self.parts.qemu;
        // It ends with the test, also with one that is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--"]).arg(root.join("usr/bin/qemu-system-x86_64"));
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries: Vec<OsString> = libraries.iter().map(|l| root.join(l).into()).collect();
        qemu.env("LD_LIBRARY_PATH", libraries.join(&OsString::from(":")));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(root.join(firmware));
        }
        qemu.args(["-accel", Accelerator::of_this_machine().argument()]);
        qemu.args(["-M", "q35", "-cpu", "max", "-m", MEMORY]);
        // Several processors, emulated at once, now and then crash a kernel that patches its own
        // code (XDP programs that are exchanged).
        qemu.args(["-smp", "1"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.args(["-serial", "stdio", "-device", "virtio-rng-pci"]);
        let snapshot = if self.throwaway { "on" } else { "off" };
        let image = self.image.path.display();
        qemu.arg("-drive")
            .arg(format!("file={image},format=raw,if=none,id=d0,cache=unsafe,snapshot={snapshot}"));
        qemu.args(["-device", "virtio-blk-pci,drive=d0"]);
        // A restart ends it, and so does a panic. (It would hang in its firmware while packets come.)
        qemu.arg("-no-reboot");
        if self.orders {
            let socket = socket.display();
            qemu.arg("-chardev").arg(format!("socket,id=orders,path={socket},server=on,wait=off"));
            qemu.args(["-serial", "chardev:orders"]);
        }
        if let Some((tap, mac)) = &self.tap {
            let tap = format!("tap,id=n0,ifname={tap},script=no,downscript=no");
            qemu.arg("-netdev").arg(tap);
            qemu.arg("-device").arg(format!("virtio-net-pci,netdev=n0,romfile=,mac={mac}"));
        }
        qemu.arg("-kernel").arg(self.parts.boot_file("vmlinuz", self.kernel)?);
        qemu.arg("-initrd").arg(self.parts.boot_file("initrd.img", self.kernel)?);
        qemu.arg("-append").arg(self.kernel_arguments());
        Ok(qemu)
    }

    fn kernel_arguments(&self) -> String {
        if let [program, arguments @ ..] = self.init.as_slice() {
            return format!("{KERNEL_ARGUMENTS} init={program} -- {}", arguments.join(" "));
        }
        // What systemd says is seen on the console.
        format!("{KERNEL_ARGUMENTS} systemd.show_status=1")
    }
}

/// A machine that is on. Dropping it cuts its power.
#[derive(Debug)]
pub struct Console {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
    orders: Option<PathBuf>,
}

impl Console {
    /// Starts a machine's process, whose output is the console.
    pub(super) fn of(machine: &mut Command, log: &Path) -> Result<Self> {
        let child = machine.stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {machine:?}"))?;
        let output = child.stdout.take().context("the console is not connected")?;
        let lines = follow(output, log)?;
        Ok(Self { child, lines, log: log.to_owned(), orders: None })
    }

    /// The next line of the console; `None` after the last one. Fails if none comes in time.
    pub fn line(&mut self, deadline: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("time is up; its console: {}", self.log.display())
            }
        }
    }

    /// Waits for a line that contains this, and returns it.
    pub fn wait_for(&mut self, word: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        while let Some(line) =
            self.line(deadline).with_context(|| format!("waiting for {word:?}"))?
        {
            if line.contains(word) {
                return Ok(line);
            }
        }
        bail!("the machine ended before it said {word:?}; its console: {}", self.log.display())
    }

    /// Waits until the machine has switched itself off, or has begun to restart.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.line(deadline).context("waiting for its end")?.is_some() {}
        Ok(())
    }

    /// Where what the console said is kept.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The line by which it takes orders.
    pub fn orders(&self) -> Result<Orders> {
        let path = self.orders.as_ref().context("this machine takes no orders")?;
        let stream = UnixStream::connect(path).context("the machine's second line is not there")?;
        Ok(Orders::new(stream))
    }

    /// Cuts the power: what the kernel had not written to the disk is lost.
    pub fn cut(mut self) -> Result<()> {
        self.child.kill().context("cannot end the machine")?;
        self.child.wait().context("cannot wait for the machine")?;
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(orders) = &self.orders {
            drop(fs::remove_file(orders));
        }
    }
}

/// Reads the console from now on, into a file and a channel.
fn follow(output: impl std::io::Read + Send + 'static, log: &Path) -> Result<Receiver<String>> {
    let log_file = OpenOptions::new().create(true).append(true).open(log);
    let mut log = log_file.with_context(|| format!("cannot make {}", log.display()))?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let text = String::from_utf8_lossy(&line);
            drop(writeln!(log, "{}", text.trim_end_matches('\r')));
            // Nobody may be listening any more; the log goes on.
            drop(sender.send(text.trim_end_matches('\r').to_owned()));
        }
    });
    Ok(lines)
}
