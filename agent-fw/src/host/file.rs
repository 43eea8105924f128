//! Files that are there whole or not at all.

use anyhow::Context as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Reads a text, or `None` if there is no such file.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a text so that at every moment, also after a power cut, the file has the old text or
/// the new one. The file belongs to its writer and anybody may read it (mode 0644).
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("a file needs a directory")?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let scratch = path.with_added_extension("new");
    write_new(&scratch, text)
        .and_then(|()| fs::rename(&scratch, path))
        .and_then(|()| File::open(directory)?.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
        .inspect_err(|_| drop(fs::remove_file(&scratch)))
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
