//! Files that are there whole or not at all, and are read without waiting for anybody.

use super::reader::{self, Answer, Wish};
use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

/// More than any configuration: what is larger is no such file.
const MAX_BYTES: u64 = 16 << 20;
/// The largest list that is read: twice a million long lines.
const MAX_LIST_BYTES: u64 = 128 << 20;

/// Whose files are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// Those that nobody but root, or whoever runs this, can change.
    #[default]
    Owned,
    /// Anybody's.
    Anybody,
}

/// Reads a text, or `None` if there is no such file.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    read_bounded(path, MAX_BYTES, Trust::Anybody)
}

/// The same of a file that decides who is admitted, on whatever file system it is.
pub fn read_trusted(path: &Path, trust: Trust) -> anyhow::Result<Option<String>> {
    match asked(Wish::Text, path, trust)? {
        Answer::Bytes(bytes) => Ok(Some(String::from_utf8(bytes)?)),
        _ => Ok(None),
    }
}

/// The same of one that may be as large as all lists together.
pub fn read_large(path: &Path) -> anyhow::Result<Option<String>> {
    read_bounded(path, 4 * MAX_LIST_BYTES, Trust::Anybody)
}

/// Reads a list that decides who is admitted, on whatever file system it is.
pub fn read_list(path: &Path, trust: Trust) -> anyhow::Result<Vec<u8>> {
    match asked(Wish::List, path, trust)? {
        Answer::Bytes(bytes) => Ok(bytes),
        _ => bail!("cannot read {}: there is no such file", path.display()),
    }
}

/// Whether others than root, or whoever runs this, can change a file that is there.
pub fn is_others(path: &Path) -> bool {
    matches!(asked(Wish::IsOthers, path, Trust::Anybody), Ok(Answer::Truth(true)))
}

/// Whether a file can be read again at the next boot: a pipe cannot. What is wrong with a path is said
/// when it is read, but for one that does not answer.
pub fn is_lasting(path: &Path) -> anyhow::Result<bool> {
    // What is there is another thing to each process.
    let is_passing = PASSING.iter().any(|root| path.starts_with(root));
    Ok(!is_passing && asked(Wish::IsLasting, path, Trust::Anybody)? == Answer::Truth(true))
}

/// Where nothing lasts.
const PASSING: [&str; 2] = ["/dev", "/proc"];

/// Has another process look, or looks.
fn asked(wish: Wish, path: &Path, trust: Trust) -> anyhow::Result<Answer> {
    reader::ask(wish, path, trust).unwrap_or_else(|| look(wish, path, trust))
}

/// Looks at a file, however long that takes.
pub(super) fn look(wish: Wish, path: &Path, trust: Trust) -> anyhow::Result<Answer> {
    match wish {
        Wish::Text => {
            let text = read_bounded(path, MAX_BYTES, trust)?;
            Ok(text.map_or(Answer::Nothing, |text| Answer::Bytes(text.into_bytes())))
        }
        Wish::List => {
            let read = || -> anyhow::Result<Answer> {
                let Some(file) = open_regular(path, MAX_LIST_BYTES, trust)? else {
                    return Ok(Answer::Nothing);
                };
                Ok(Answer::Bytes(limited(file, MAX_LIST_BYTES)?))
            };
            read().with_context(|| format!("cannot read {}", path.display()))
        }
        Wish::IsOthers => {
            let is_its_owners = |metadata: fs::Metadata| check_owner(&metadata).is_err();
            let is_others = path.metadata().is_ok_and(is_its_owners)
                || check_way(path).is_err() && path.exists();
            Ok(Answer::Truth(is_others))
        }
        Wish::IsLasting => {
            // /dev/stdin and /proc/self/fd/0 look like a file where one is behind them.
            let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let is_passing = PASSING.iter().any(|root| real.starts_with(root));
            let is_file = path.metadata().map_or(true, |metadata| metadata.is_file());
            Ok(Answer::Truth(!is_passing && is_file))
        }
    }
}

/// Reads what comes from a pipe, or from standard input, to its end.
pub fn read_stream(stream: impl Read) -> anyhow::Result<Vec<u8>> {
    limited(stream, MAX_LIST_BYTES)
}

fn read_bounded(path: &Path, most: u64, trust: Trust) -> anyhow::Result<Option<String>> {
    let read = || -> anyhow::Result<Option<String>> {
        let Some(file) = open_regular(path, most, trust)? else { return Ok(None) };
        let text = String::from_utf8(limited(file, most)?).context("it is no text (UTF-8)")?;
        Ok(Some(text))
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// Opens a regular file, or says why not. What it is, is known before it is opened: to open a pipe
/// or a device, or to read one of the kernel's own files, may wait for ever, and more. `None` if
/// there is no such file.
fn open_regular(path: &Path, most: u64, trust: Trust) -> anyhow::Result<Option<File>> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let place = match open(path, flags, Mode::empty()) {
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        place => File::from(place?),
    };
    let metadata = place.metadata()?;
    ensure!(!metadata.is_dir(), "it is a directory");
    ensure!(metadata.is_file() && !is_the_kernels(&place), "it is no regular file");
    ensure!(metadata.len() <= most, "it is larger than {} MiB", most >> 20);
    if trust == Trust::Owned {
        check_owner(&metadata)?;
        check_way(path)?;
    }
    // The same file, whatever the path leads to by now.
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    let opened: OwnedFd = open(same.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(Some(opened.into()))
}

/// Whether a file is one of the kernel's: procfs and its like call them regular.
fn is_the_kernels(file: &File) -> bool {
    // PROC, SYSFS, DEBUGFS, TRACEFS, SECURITYFS, CGROUP, CGROUP2, BPF_FS, PSTOREFS, BINFMTFS and
    // EFIVARFS of linux/magic.h.
    const KERNELS: [u32; 11] = [
        0x9fa0,
        0x6265_6572,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0x0027_e0eb,
        0x6367_7270,
        0xcafe_4a11,
        0x6165_676c,
        0x4249_4e4d,
        0xde5e_81e4,
    ];
    fstatfs(file).is_ok_and(|found| {
        let FsType(kind) = found.filesystem_type();
        // Signed or not, as the C library has it.
        KERNELS.iter().any(|known| i128::from(*known) == i128::from(kind))
    })
}

const ADVICE: &str = "`chown root` and `chmod go-w` make it root's alone, and --trust-file-modes \
                      takes it as it is";

/// Refuses a file that others can change.
fn check_owner(metadata: &fs::Metadata) -> anyhow::Result<()> {
    let owner = metadata.uid();
    ensure!(is_ours(metadata), "user {owner} owns it, and could change it; {ADVICE}");
    ensure!(!is_writable_by_others(metadata), "others than root can change it; {ADVICE}");
    Ok(())
}

/// Refuses a path that others can make lead elsewhere: by a link of theirs, or in a directory of
/// theirs.
fn check_way(path: &Path) -> anyhow::Result<()> {
    const STICKY: u32 = 0o1000;
    let path = std::path::absolute(path)?;
    let real = path.canonicalize()?;
    for part in path.ancestors().chain(real.ancestors()) {
        let metadata = part.symlink_metadata()?;
        let (owner, part) = (metadata.uid(), part.display());
        ensure!(is_ours(&metadata), "user {owner} owns {part}, and could replace it; {ADVICE}");
        let is_open =
            metadata.is_dir() && metadata.mode() & STICKY == 0 && is_writable_by_others(&metadata);
        ensure!(!is_open, "others than root can replace what is in {part}; {ADVICE}");
    }
    Ok(())
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid())
}

fn is_writable_by_others(metadata: &fs::Metadata) -> bool {
    metadata.mode() & 0o020 != 0 && metadata.gid() != 0 || metadata.mode() & 0o002 != 0
}

/// Reads to the end, but no more than this, and no further than a byte that no text has.
fn limited(mut source: impl Read, most: u64) -> anyhow::Result<Vec<u8>> {
    const STEP: u64 = 1 << 20;
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        source.by_ref().take(STEP).read_to_end(&mut bytes)?;
        if bytes.len() == before {
            return Ok(bytes);
        }
        ensure!(!is_utf16(&bytes), "expected text in UTF-8, found UTF-16: {UTF16}");
        ensure!(
            !bytes[before..].contains(&0),
            "expected text in UTF-8, found a zero byte; if it is UTF-16, {UTF16}"
        );
        ensure!(bytes.len() as u64 <= most, "it is larger than {} MiB", most >> 20);
    }
}

/// How UTF-16 becomes UTF-8.
const UTF16: &str = "save it as UTF-8, such as by `iconv -f UTF-16 -t UTF-8` or, in PowerShell, \
                     `Out-File -Encoding utf8`";

/// Whether it begins with the byte order mark of UTF-16.
fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff])
}

/// Whether a file has this text, and belongs to its writer and may be read by anybody.
pub fn is_as_written(path: &Path, text: &str) -> bool {
    has_mode(path, 0o644) && read(path).is_ok_and(|found| found.as_deref() == Some(text))
}

/// Whether a file belongs to its writer, who alone may read it.
pub fn is_private(path: &Path) -> bool {
    has_mode(path, 0o600)
}

fn has_mode(path: &Path, mode: u32) -> bool {
    let is = |metadata: fs::Metadata| {
        metadata.mode() & 0o7777 == mode && metadata.uid() == nix::unistd::geteuid().as_raw()
    };
    path.symlink_metadata().is_ok_and(is)
}

/// Writes a text so that at every moment, also after a power cut, the file has the old text or
/// the new one. The file belongs to its writer and anybody may read it (mode 0644).
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    prepare(path, text)?.commit()
}

/// The same; nobody but its writer may read it (mode 0600).
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    prepare_with(path, text, 0o600)?.commit()
}

/// A text that is on disk, beside the file that it is to become.
#[must_use = "a prepared file is to be committed"]
pub struct Prepared {
    scratch: PathBuf,
    path: PathBuf,
}

/// Writes a text to disk that [`Prepared::commit`] puts in its place.
pub fn prepare(path: &Path, text: &str) -> anyhow::Result<Prepared> {
    prepare_with(path, text, 0o644)
}

fn prepare_with(path: &Path, text: &str, mode: u32) -> anyhow::Result<Prepared> {
    let directory = path.parent().context("a file needs a directory")?;
    make_directory(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let scratch = path.with_added_extension("new");
    let prepared = Prepared { scratch, path: path.to_owned() };
    write_new(&prepared.scratch, text, mode)
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

fn write_new(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    // One that was left behind by a crash; a link that waits there is not followed.
    remove_if_there(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask is: who may not read the policy cannot know what is enforced.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
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
    #[test]
    fn what_could_keep_us_waiting_is_not_opened() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("made");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc/kmsg", &link).expect("linked");
        for path in [&fifo, &link, Path::new("/dev/zero"), Path::new("/proc/self/stat")] {
            let error = format!("{:#}", read(path).expect_err("no regular file"));
            assert!(error.contains("no regular file"), "{error}");
            assert!(read_list(path, Trust::Anybody).is_err());
        }
        assert!(format!("{:#}", read(directory.path()).expect_err("none")).contains("directory"));
        assert_eq!(read(&directory.path().join("none")).expect("no file"), None);
    }

    #[test]
    fn a_large_or_sparse_file_is_not_read_to_its_end() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("sparse");
        let file = File::create(&path).expect("made");
        file.set_len(MAX_LIST_BYTES).expect("sparse");
        let error = format!("{:#}", read_list(&path, Trust::Owned).expect_err("zeros"));
        assert!(error.contains("zero byte"), "{error}");
        file.set_len(MAX_LIST_BYTES + 1).expect("sparse");
        let error = format!("{:#}", read_list(&path, Trust::Owned).expect_err("too large"));
        assert!(error.contains("larger than 128 MiB"), "{error}");
    }

    #[test]
    fn a_file_that_others_can_change_is_refused_and_says_how_to_mend_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("list");
        fs::write(&path, "192.0.2.1\n").expect("written");
        for (mode, is_read) in [(0o644, true), (0o600, true), (0o646, false), (0o666, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            let read = read_list(&path, Trust::Owned);
            assert_eq!(read.is_ok(), is_read, "{mode:o}");
            if let Err(error) = read {
                assert!(format!("{error:#}").contains("--trust-file-modes"), "{error:#}");
            }
            assert!(read_list(&path, Trust::Anybody).is_ok());
        }
    }
}
