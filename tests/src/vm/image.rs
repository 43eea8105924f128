//! A disk: Debian and what a test puts into it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Parts;
use crate::command::{command, run};

/// Room for Debian, a payload, and what a test writes. The file is sparse.
const SIZE: &str = "1400M";

/// What a test puts on the disk, by absolute paths in there.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    files: Vec<(PathBuf, Content)>,
}

#[derive(Clone, Debug)]
enum Content {
    Copy(PathBuf),
    Text(String),
    Link(PathBuf),
}

impl Payload {
    /// A file of this machine, with its permissions.
    #[must_use]
    pub fn copy(mut self, inside: impl AsRef<Path>, from: &Path) -> Self {
        self.files.push((inside.as_ref().to_owned(), Content::Copy(from.to_owned())));
        self
    }

    /// A directory of this machine with all that is in it, at the same path.
    pub fn tree(mut self, directory: &Path) -> Result<Self> {
        let entries = fs::read_dir(directory);
        for entry in entries.with_context(|| format!("cannot read {}", directory.display()))? {
            let path = entry?.path();
            self = if path.is_dir() { self.tree(&path)? } else { self.copy(&path, &path) };
        }
        Ok(self)
    }

    /// A text, which everybody may read.
    #[must_use]
    pub fn text(mut self, inside: impl AsRef<Path>, text: impl Into<String>) -> Self {
        self.files.push((inside.as_ref().to_owned(), Content::Text(text.into())));
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, inside: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.files.push((inside.as_ref().to_owned(), Content::Link(target.as_ref().to_owned())));
        self
    }

    fn put_into(&self, root: &Path) -> Result<()> {
        for (inside, content) in &self.files {
            let place = root.join(inside.strip_prefix("/").unwrap_or(inside));
            let directory = place.parent().unwrap_or(root);
            fs::create_dir_all(directory)
                .and_then(|()| content.write(&place))
                .with_context(|| format!("cannot put {} on the disk", inside.display()))?;
        }
        Ok(())
    }
}

impl Content {
    fn write(&self, place: &Path) -> std::io::Result<()> {
        // What is there is shared with the original by a hard link, and must not be written to.
        match fs::remove_file(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match self {
            Self::Copy(from) => fs::copy(from, place).map(drop),
            Self::Text(text) => {
                fs::write(place, text)?;
                fs::set_permissions(place, Permissions::from_mode(0o644))
            }
            Self::Link(target) => symlink(target, place),
        }
    }
}

/// A disk image, removed with this value.
#[derive(Debug)]
pub struct Image {
    pub(super) path: PathBuf,
    keep: bool,
}

impl Image {
    /// Makes an image of this name, which no other test may use at the same time.
    pub fn make(parts: &Parts, name: &str, payload: &Payload) -> Result<Self> {
        let beside = parts.debian.parent().context("Debian is the root directory")?;
        let (tree, path) =
            (beside.join(format!("tree-{name}")), beside.join(format!("{name}.img")));
        remove(&tree)?;
        // Hard links: the copy takes neither time nor room.
        let copied = run([Path::new("cp"), Path::new("-al"), &parts.debian, &tree])
            .and_then(|_| payload.put_into(&tree))
            .and_then(|()| {
                drop(fs::remove_file(&path));
                let mut mke2fs = command(["mke2fs", "-q", "-t", "ext4", "-d"]);
                let made = mke2fs.arg(&tree).arg(&path).arg(SIZE).output()?;
                let said = String::from_utf8_lossy(&made.stderr);
                anyhow::ensure!(made.status.success(), "mke2fs failed: {said}");
                Ok(())
            });
        remove(&tree)?;
        copied.with_context(|| format!("cannot make the disk {}", path.display()))?;
        Ok(Self { path, keep: false })
    }

    /// Leaves the file there afterwards, and tells where it is.
    pub fn keep(&mut self) -> &Path {
        self.keep = true;
        &self.path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if !self.keep {
            drop(fs::remove_file(&self.path));
        }
    }
}

fn remove(tree: &Path) -> Result<()> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", tree.display()))
        }
        _ => Ok(()),
    }
}
