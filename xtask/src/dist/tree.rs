//! What packages hold, as a directory: each file where it will be on a host.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::Built;
use crate::process::{output, run, workspace};

/// The program, in there.
pub(super) const PROGRAM: &str = "usr/bin/agent-fw";

/// What is linked with the program; the packages and versions follow.
const LIBRARIES: &str = "\
The program is static: it is linked with libnftnl (GPL-2.0-or-later) and libmnl
(LGPL-2.1-or-later) as Debian has built them, and with musl (MIT) as Rust has.
The sources of the first two are in Debian's archive, under the source packages
libnftnl and libmnl, of the versions of these:

";

/// A directory to be packed.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A copy of another one, for what a kind of package has otherwise.
    pub(super) fn copy(from: &Path, to: PathBuf) -> Result<Self> {
        remove(&to)?;
        run(Command::new("cp").arg("--archive").arg(from).arg(&to))?;
        Ok(Self { root: to })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Puts there what every kind of package holds.
    pub(super) fn fill(&self, sources: &Path, built: &Built<'_>) -> Result<()> {
        remove(&self.root)?;
        self.copy_in(built.agent_fw, PROGRAM)?;
        run(Command::new(built.package_files).arg(&self.root))?;
        run(Command::new("gzip")
            .args(["--best", "--no-name", "--recursive"])
            .arg(self.root.join("usr/share/man")))?;
        let documents = "usr/share/doc/agent-fw";
        let libraries = format!("{LIBRARIES}{}", built.libraries);
        self.write(&format!("{documents}/libraries.txt"), &libraries)?;
        self.copy_in(&sources.join("README.md"), &format!("{documents}/README.md"))?;
        self.copy_all_in(&sources.join("docs"), &format!("{documents}/docs"))
    }

    /// Copies a directory to a path below the root.
    fn copy_all_in(&self, from: &Path, to: &str) -> Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let to = format!("{to}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.copy_all_in(&entry.path(), &to)?;
            } else {
                self.copy_in(&entry.path(), &to)?;
            }
        }
        Ok(())
    }

    /// Copies a file to a path below the root.
    pub(super) fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        fs::copy(from, self.place(to)?)
            .with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// Copies both licences into a directory.
    pub(super) fn copy_licenses(&self, to: &str) -> Result<()> {
        for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
            self.copy_in(&workspace().join(name), &format!("{to}/{name}"))?;
        }
        Ok(())
    }

    /// Writes a text.
    pub(super) fn write(&self, to: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.place(to)?, text)?)
    }

    /// Moves a file or directory.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        Ok(fs::rename(self.root.join(from), self.place(to)?)?)
    }

    /// Gives everything its mode and the release's time, whatever the umask and the clock were.
    pub(super) fn settle(&self, epoch: u64, programs: &[String]) -> Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(epoch);
        let programs: Vec<_> = programs.iter().map(|program| self.root.join(program)).collect();
        let mut entries = self.entries()?;
        entries.push(self.root.clone());
        for path in entries {
            let executable = path.is_dir() || programs.contains(&path);
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            File::open(&path)?.set_modified(time)?;
        }
        Ok(())
    }

    /// How many bytes its files have.
    pub(super) fn size(&self) -> Result<u64> {
        let files = self.entries()?.into_iter().filter(|path| path.is_file());
        files.map(|path| Ok(fs::metadata(path)?.len())).sum()
    }

    /// Every file and directory in it, sorted.
    pub(super) fn entries(&self) -> Result<Vec<PathBuf>> {
        let (mut found, mut left) = (Vec::new(), vec![self.root.clone()]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn place(&self, to: &str) -> Result<PathBuf> {
        let path = self.root.join(to);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        Ok(path)
    }
}

/// Copies the sources that git knows, as they are now.
pub(super) fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    let listed = output(Command::new("git").args(["ls-files", "-z"]).current_dir(from))?;
    for name in listed.split_terminator('\0').filter(|name| from.join(name).is_file()) {
        let place = to.join(name);
        fs::create_dir_all(place.parent().context("a file is in a directory")?)?;
        fs::copy(from.join(name), place).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
