//! Other programs, as the system has them: from the directories that are root's, whatever the PATH
//! of whoever runs agent-fw says.

use std::path::Path;
use std::process::Command;

/// Where the system's programs are, those for administrators first.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A call of a program of this name. Where there is none, starting it fails.
pub(crate) fn call(name: &str) -> Command {
    let found = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    let path = found.into_iter().find(|path| path.exists());
    let mut command = Command::new(path.unwrap_or_else(|| Path::new("/usr/sbin").join(name)));
    // What they start is the system's, too, and what they print is read.
    command.env("PATH", DIRECTORIES.join(":")).env("LC_ALL", "C.UTF-8");
    command
}

/// Whether there is a program of this name.
pub(crate) fn exists(name: &str) -> bool {
    DIRECTORIES.iter().any(|directory| Path::new(directory).join(name).exists())
}
