//! Files that are there whole or not at all.

use anyhow::{Context as _, bail};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

/// More than any configuration: what is larger is no such file.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text, or `None` if there is no such file.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // A pipe or a device could keep us waiting for ever.
        Ok(metadata) if !metadata.is_file() => bail!("{} is no file", path.display()),
        Ok(metadata) if metadata.len() > MAX_BYTES => bail!("{} is too large", path.display()),
        _ => {}
    }
    fs::read_to_string(path).map(Some).with_context(|| format!("cannot read {}", path.display()))
}

/// Whether a file has this text, and belongs to its writer and may be read by anybody.
pub fn is_as_written(path: &Path, text: &str) -> bool {
    let known = |metadata: fs::Metadata| {
        metadata.mode() & 0o7777 == 0o644 && metadata.uid() == nix::unistd::geteuid().as_raw()
    };
    path.symlink_metadata().is_ok_and(known)
        && read(path).is_ok_and(|found| found.as_deref() == Some(text))
}

/// Writes a text so that at every moment, also after a power cut, the file has the old text or
/// the new one. The file belongs to its writer and anybody may read it (mode 0644).
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    prepare(path, text)?.commit()
}

/// A text that is on disk, beside the file that it is to become.
#[must_use = "a prepared file is to be committed"]
pub struct Prepared {
    scratch: PathBuf,
    path: PathBuf,
}

/// Writes a text to disk that [`Prepared::commit`] puts in its place.
pub fn prepare(path: &Path, text: &str) -> anyhow::Result<Prepared> {
    let directory = path.parent().context("a file needs a directory")?;
    make_directory(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let scratch = path.with_added_extension("new");
    let prepared = Prepared { scratch, path: path.to_owned() };
    write_new(&prepared.scratch, text)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(prepared)
}

impl Prepared {
    /// Puts the text in its place.
    pub fn commit(self) -> anyhow::Result<()> {
        let directory = self.path.parent().context("a file needs a directory")?;
        fs::rename(&self.scratch, &self.path)
            .and_then(|()| File::open(directory)?.sync_all())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // After a commit it is not there any more.
        drop(fs::remove_file(&self.scratch));
    }
}

/// Makes a directory that anybody may look into, whatever the umask is.
pub fn make_directory(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    // One that was left behind by a crash; a link that waits there is not followed.
    remove_if_there(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask is: who may not read the policy cannot know what is enforced.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file; that there is none is no error.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    remove_if_there(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_readable_to_all_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("sub/policy.toml");
        write(&path, "old").expect("written");
        write(&path, "new").expect("written again");
        assert_eq!(read(&path).expect("read").as_deref(), Some("new"));
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let left = fs::read_dir(path.parent().expect("has one")).expect("there").count();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_link_in_the_way_of_the_scratch_file_is_not_followed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (victim, path) = (directory.path().join("victim"), directory.path().join("policy"));
        fs::write(&victim, "untouched").expect("written");
        std::os::unix::fs::symlink(&victim, directory.path().join("policy.new")).expect("linked");
        write(&path, "new").expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("there"), "untouched");
        assert_eq!(fs::read_to_string(&path).expect("there"), "new");
    }
}
