//! What outlives this process: names below [`DIRECTORY`], each of which holds a link, a program or a
//! map in the kernel. Each network namespace has a directory of its own: interfaces have numbers that
//! mean something in one namespace alone, and what another one enforces is not ours to take off.

use super::error::XdpError;
use super::hook;
use crate::model::PolicyHash;
use crate::netlink::bpf::Link;
use crate::netlink::{link, tc};
use crate::system::namespace;
use aya::maps::MapData;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::error::Error;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Where everything is pinned, by network namespace. bpffs takes no dots in names.
pub const DIRECTORY: &str = "/sys/fs/bpf/agent-fw";

/// Where this network namespace's pins are.
pub(super) fn directory() -> PathBuf {
    // Without /proc there is one namespace as far as anybody can tell.
    let namespace = namespace::current().unwrap_or_default();
    Path::new(DIRECTORY).join(format!("netns-{namespace}"))
}

/// Something that is pinned, by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Pin {
    /// The link of the program at this interface's XDP.
    Link(u32),
    /// The link of the program at this interface's tc hook, with TCX.
    Tcx(u32),
    /// A mark: there may be a filter of ours below this interface's clsact.
    Filter(u32),
    /// A mark: this interface's clsact may be ours.
    Clsact(u32),
    /// A policy's program for XDP.
    Program(Enforced),
    /// A policy's program for the tc hook.
    Classifier(Enforced),
    /// The list by which a policy's programs know this host's frames.
    OwnFrames(Enforced),
    /// A map whose layout has this version: one with another layout begins anew.
    Map(MapName),
    /// What another version of agent-fw has pinned.
    Stranger(String),
}

/// A map that goes on from one policy to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MapName {
    Tally,
    Labels,
    Samples,
}

impl MapName {
    pub(super) const ALL: [Self; 3] = [Self::Tally, Self::Labels, Self::Samples];

    /// Its name in the object.
    pub(super) const fn in_object(self) -> &'static str {
        match self {
            Self::Tally => "TALLY",
            Self::Labels => "LABELS",
            Self::Samples => "SAMPLES",
        }
    }

    /// Its name among the pins, with the version of its layout.
    const fn pinned(self) -> &'static str {
        match self {
            Self::Tally => "tally-2",
            Self::Labels => "labels-1",
            Self::Samples => "samples-1",
        }
    }
}

/// What a program enforces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Enforced {
    /// The policy.
    pub(super) policy: PolicyHash,
    /// Whether the gate stands behind.
    pub(super) gate: bool,
}

impl Enforced {
    /// Of a program that was found without pins.
    pub(super) const UNKNOWN: Self = Self { policy: PolicyHash::UNKNOWN, gate: false };
}

const WITH_GATE: &str = "-gate";

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.policy, if self.gate { WITH_GATE } else { "" })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(index) => write!(f, "link-{index}"),
            Self::Tcx(index) => write!(f, "tcx-{index}"),
            Self::Filter(index) => write!(f, "filter-{index}"),
            Self::Clsact(index) => write!(f, "clsact-{index}"),
            Self::Program(enforced) => write!(f, "program-{enforced}"),
            Self::Classifier(enforced) => write!(f, "classifier-{enforced}"),
            Self::OwnFrames(enforced) => write!(f, "own-{enforced}"),
            Self::Map(name) => f.write_str(name.pinned()),
            Self::Stranger(name) => f.write_str(name),
        }
    }
}

impl Pin {
    fn parse(name: String) -> Self {
        let known = || {
            let (kind, of) = name.split_once('-')?;
            Some(match kind {
                "link" => Self::Link(of.parse().ok()?),
                "tcx" => Self::Tcx(of.parse().ok()?),
                "filter" => Self::Filter(of.parse().ok()?),
                "clsact" => Self::Clsact(of.parse().ok()?),
                "program" => Self::Program(Enforced::parse(of)?),
                "classifier" => Self::Classifier(Enforced::parse(of)?),
                "own" => Self::OwnFrames(Enforced::parse(of)?),
                _ => Self::Map(MapName::ALL.into_iter().find(|map| map.pinned() == name)?),
            })
        };
        known().unwrap_or(Self::Stranger(name))
    }

    pub(super) fn path(&self) -> PathBuf {
        directory().join(self.to_string())
    }

    /// Makes the pin a mark. What it holds is of no matter: a map that stays anyhow.
    pub(super) fn mark(&self) -> Result<(), XdpError> {
        if self.is_there() {
            return Ok(());
        }
        let path = self.path();
        let map = MapData::from_pin(Self::Map(MapName::Samples).path());
        let map = map.map_err(failed(&path, "cannot be made"))?;
        map.pin(&path).map_err(failed(&path, "cannot be made"))
    }

    pub(super) fn is_there(&self) -> bool {
        self.path().exists()
    }

    /// Everything that is pinned. What a filter stands below comes after the filter.
    pub(super) fn list() -> Result<Vec<Self>, XdpError> {
        adopt_unsorted();
        let directory = directory();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&directory, "cannot be listed"))?,
        };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut pins: Vec<Self> = names.map(Self::parse).collect();
        pins.sort_by_key(|pin| matches!(pin, Self::Clsact(_)));
        Ok(pins)
    }

    /// Takes what is pinned out of the traffic's way, and lets go of it. Also where its interface
    /// has gone.
    pub(super) fn release(&self) -> Result<(), XdpError> {
        let path = self.path();
        let released = match self {
            Self::Link(_) | Self::Tcx(_) => {
                match Link::from_pin(&path).and_then(|link| link.detach()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                }
            }
            Self::Filter(index) if self.is_there() => tc::remove_filter(*index).map_err(Into::into),
            Self::Clsact(index) if self.is_there() => tc::remove_clsact(*index),
            _ => Ok(()),
        };
        released.map_err(|error: anyhow::Error| XdpError::Pin {
            path: path.clone(),
            action: "cannot be detached",
            cause: error.into(),
        })?;
        self.remove()
    }

    /// Removes the name. What it held stays as long as something else holds it.
    pub(super) fn remove(&self) -> Result<(), XdpError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed(&path, "cannot be removed")(error))
            }
            _ => Ok(()),
        }
    }
}

impl Enforced {
    fn parse(text: &str) -> Option<Self> {
        let hash = text.strip_suffix(WITH_GATE).unwrap_or(text);
        Some(Self { policy: hash.parse().ok()?, gate: hash.len() != text.len() })
    }
}

/// What went wrong with a pin.
pub(super) fn failed<E>(path: &Path, action: &'static str) -> impl FnOnce(E) -> XdpError
where
    E: Error + Send + Sync + 'static,
{
    let path = path.to_owned();
    move |cause| XdpError::Pin { path, action, cause: Box::new(cause) }
}

/// Makes the directory of all pins.
pub(super) fn make_directory() -> Result<(), XdpError> {
    let parent = Path::new(DIRECTORY).parent().unwrap_or(Path::new("/"));
    let is_bpffs = statfs(parent).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_bpffs {
        return Err(XdpError::NoFileSystem);
    }
    for directory in [Path::new(DIRECTORY), &directory()] {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(failed(directory, "cannot be made")(error));
            }
            _ => {}
        }
    }
    adopt_unsorted();
    Ok(())
}

/// Version 0.1.0 pinned everything in one directory, whatever the network namespace. What it has
/// pinned for this one is moved. If that fails, it is as if another version had pinned it.
fn adopt_unsorted() {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let unsorted: Vec<_> =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir())).collect();
    if unsorted.is_empty() || !is_of_this_namespace(&unsorted) {
        return;
    }
    let directory = directory();
    drop(DirBuilder::new().mode(0o700).create(&directory));
    for entry in unsorted {
        drop(fs::rename(entry.path(), directory.join(entry.file_name())));
    }
}

/// Whether a link among these has a program that is on the interface of its number here; or no
/// interface is named by any.
fn is_of_this_namespace(entries: &[fs::DirEntry]) -> bool {
    let interfaces = link::list().unwrap_or_default();
    let mut names_any = false;
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (Pin::Link(index) | Pin::Tcx(index) | Pin::Filter(index)) = Pin::parse(name) else {
            continue;
        };
        names_any = true;
        let here = interfaces.iter().find(|interface| interface.index == index);
        if here.is_some_and(|interface| hook::is_attached(interface, &entry.path())) {
            return true;
        }
    }
    !names_any
}

/// Releases everything of this network namespace, and removes its directory.
pub(super) fn release_all() -> Result<(), XdpError> {
    Pin::list()?.iter().try_for_each(Pin::release)?;
    // The one of all namespaces stays while another one's pins are in it.
    for directory in [&directory(), Path::new(DIRECTORY)] {
        match fs::remove_dir(directory) {
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) =>
            {
                return Err(failed(directory, "cannot be removed")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_as_what_it_was_written_for() {
        let policy = "b7d622806ad4cf717230dbe43436f45d";
        let policy = policy.parse().expect("a hash");
        let maps = MapName::ALL.map(Pin::Map);
        let others = [
            Pin::Link(2),
            Pin::Tcx(3),
            Pin::Filter(4),
            Pin::Clsact(4),
            Pin::Program(Enforced { policy, gate: false }),
            Pin::Program(Enforced { policy, gate: true }),
            Pin::Classifier(Enforced { policy, gate: true }),
            Pin::OwnFrames(Enforced { policy, gate: true }),
        ];
        for pin in maps.into_iter().chain(others) {
            assert_eq!(Pin::parse(pin.to_string()), pin);
        }
    }

    #[test]
    fn what_another_version_has_pinned_is_nobodys() {
        for name in ["tally-0", "tally-99", "link-x", "program-12", "something", "new-thing-7"] {
            assert_eq!(Pin::parse(name.to_owned()), Pin::Stranger(name.to_owned()));
        }
    }
}
