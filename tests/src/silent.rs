//! A file system that falls silent, as one of a server does whose network has gone: FUSE's protocol, by
//! hand, with a file of each name that is served.

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// Operations of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Bytes of a request's header.
const HEADER: usize = 40;
/// The number of the root directory; files follow.
const ROOT: u64 = 1;
const ENOENT: i32 = -2;
const ENOSYS: i32 = -38;

/// What is not answered any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// To look for a file, and everything that follows.
    Lookup,
    /// To open a file.
    Open,
    /// To read from it.
    Read,
}

impl Silence {
    const fn operation(self) -> u32 {
        match self {
            Self::Lookup => LOOKUP,
            Self::Open => OPEN,
            Self::Read => READ,
        }
    }
}

/// Such a file system. Dropping it lets go of whoever waits for it.
#[derive(Debug)]
pub struct SilentFiles {
    directory: PathBuf,
    /// The operation that is not answered; zero for none.
    silent: Arc<AtomicU32>,
    server: Option<JoinHandle<()>>,
}

impl SilentFiles {
    /// Serves these files, by name, in a directory.
    pub fn mount(directory: &str, files: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.context("cannot open /dev/fuse")?;
        let options =
            format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("silent"), directory, Some("fuse"), flags, Some(options.as_str()))
            .context("cannot mount a file system of our own")?;
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let silent = Arc::new(AtomicU32::new(0));
        let server = Server { files: files.collect(), silent: Arc::clone(&silent) };
        let server = std::thread::spawn(move || server.serve(device));
        Ok(Self { directory: directory.into(), silent, server: Some(server) })
    }

    /// Answers no more.
    pub fn fall_silent(&self, silence: Silence) {
        self.silent.store(silence.operation(), Ordering::Relaxed);
    }

    /// Answers what is asked from now on.
    pub fn speak(&self) {
        self.silent.store(0, Ordering::Relaxed);
    }
}

impl Drop for SilentFiles {
    fn drop(&mut self) {
        umount2(&self.directory, MntFlags::MNT_FORCE).unwrap_or_default();
        umount2(&self.directory, MntFlags::MNT_DETACH).unwrap_or_default();
        drop(self.server.take().map(JoinHandle::join));
    }
}

struct Server {
    files: BTreeMap<String, String>,
    silent: Arc<AtomicU32>,
}

impl Server {
    /// Until the file system is unmounted.
    fn serve(&self, mut device: File) {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length) = device.read(&mut buffer) {
            let request = &buffer[..length];
            if let Some(answer) = self.answer(request) {
                // Whoever has asked may have gone.
                drop(device.write(&answer));
            }
        }
    }

    /// The answer, with its header; none where nobody waits, or where it is silent.
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let operation = u32::from_ne_bytes(part(request, 4)?);
        let (unique, node) = (part::<8>(request, 8)?, u64::from_ne_bytes(part(request, 16)?));
        if [FORGET, BATCH_FORGET, INTERRUPT].contains(&operation) {
            return None;
        }
        let silent = self.silent.load(Ordering::Relaxed);
        if operation == silent || silent == LOOKUP && operation != INIT {
            return None;
        }
        let (error, body) = match self.body(operation, node, request.get(HEADER..)?) {
            Ok(body) => (0, body),
            Err(error) => (error, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).ok()?;
        let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique].concat();
        Some([head, body].concat())
    }

    fn body(&self, operation: u32, node: u64, rest: &[u8]) -> Result<Vec<u8>, i32> {
        match operation {
            INIT => {
                // Version 7.31, a largest write, a granularity of time, and nothing else.
                let words: [u32; 16] = [7, 31, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                Ok(words.into_iter().flat_map(u32::to_ne_bytes).collect())
            }
            LOOKUP => {
                let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                let at = self.files.keys().position(|other| other.as_bytes() == name);
                let node = ROOT + 1 + at.ok_or(ENOENT)? as u64;
                // The node, a generation, and no time for which this is so.
                let head = [node, 0, 0, 0, 0];
                let head = head.into_iter().flat_map(u64::to_ne_bytes);
                Ok(head.chain(self.attributes(node)?).collect())
            }
            GETATTR => Ok([0; 16].into_iter().chain(self.attributes(node)?).collect()),
            // A handle, and to read from here each time (FOPEN_DIRECT_IO).
            OPEN => Ok([0_u64, 1].into_iter().flat_map(u64::to_ne_bytes).collect()),
            READ => {
                let from = part(rest, 8).map(u64::from_ne_bytes).ok_or(ENOSYS)?;
                let from = usize::try_from(from).map_err(|_| ENOSYS)?;
                let most = part(rest, 16).map(u32::from_ne_bytes).ok_or(ENOSYS)? as usize;
                let text = self.text(node)?.as_bytes().iter().skip(from).take(most);
                Ok(text.copied().collect())
            }
            RELEASE => Ok(Vec::new()),
            _ => Err(ENOSYS),
        }
    }

    fn text(&self, node: u64) -> Result<&str, i32> {
        let at = node.checked_sub(ROOT + 1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.files.values().nth(at)).map(String::as_str).ok_or(ENOENT)
    }

    /// `struct fuse_attr`: root's, and only root can change it.
    fn attributes(&self, node: u64) -> Result<Vec<u8>, i32> {
        let (mode, length) = match node {
            ROOT => (0o40755, 0),
            _ => (0o100_644, self.text(node)?.len() as u64),
        };
        let longs = [node, length, 1, 0, 0, 0].into_iter().flat_map(u64::to_ne_bytes);
        let words: [u32; 10] = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
        Ok(longs.chain(words.into_iter().flat_map(u32::to_ne_bytes)).collect())
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Whether this kernel has file systems of processes.
#[must_use]
pub fn has_silent_files() -> bool {
    Path::new("/dev/fuse").exists()
}
