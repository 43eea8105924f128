//! Debian's packages of other suites and architectures: fetched by an apt that knows nothing else, and
//! unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, run};

/// The release that this project is built and tested on.
pub(crate) const RELEASE: &str = "bookworm";
/// Packages are signed with Debian's keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian's archive, beside this machine's.
pub(crate) struct Suite {
    place: PathBuf,
    options: Vec<String>,
}

impl Suite {
    /// The suite of this name. What is fetched goes to `place`.
    pub(crate) fn at(place: PathBuf, name: &str) -> Result<Self> {
        Self::of_architecture(place, name, None)
    }

    /// Its packages for an architecture, by Debian's name for it; `None`: this machine's.
    pub(crate) fn of_architecture(
        place: PathBuf,
        name: &str,
        architecture: Option<&str>,
    ) -> Result<Self> {
        fs::create_dir_all(place.join("lists/partial"))?;
        let list = place.join("sources.list");
        let mirror = mirror()?;
        fs::write(&list, format!("deb [signed-by={KEYRING}] {mirror} {name} main\n"))?;
        let mut options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", place.join("lists").display()),
            format!("Dir::Cache::pkgcache={}", place.join("pkgcache.bin").display()),
            format!("Dir::Cache::srcpkgcache={}", place.join("srcpkgcache.bin").display()),
            // The directory is this user's, not that of apt's own user.
            "APT::Sandbox::User=root".to_owned(),
        ];
        if let Some(architecture) = architecture {
            options.push(format!("APT::Architecture={architecture}"));
            options.push(format!("APT::Architectures={architecture}"));
        }
        let suite = Self { place, options };
        run(suite.apt("apt-get").arg("update"))?;
        Ok(suite)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.current_dir(&self.place).args(["--quiet", "--quiet"]);
        apt.args(self.options.iter().flat_map(|option| ["-o", option.as_str()]));
        apt
    }

    /// Fetches a package and unpacks it below [`Self::root`]. Returns its version.
    pub(crate) fn unpack(&self, package: &str) -> Result<String> {
        run(self.apt("apt-get").args(["download", package]))?;
        let deb = file_in(&self.place, "deb")?;
        let mut field = Command::new("dpkg-deb");
        let version = output(field.arg("--field").arg(&deb).arg("Version"))?;
        run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(self.root()))?;
        fs::remove_file(deb)?;
        Ok(version.trim().to_owned())
    }

    /// The first package that a package depends on.
    pub(crate) fn dependency_of(&self, package: &str) -> Result<String> {
        let text = output(self.apt("apt-cache").args(["depends", package]))?;
        let depends = |line: &str| line.trim().strip_prefix("Depends: ").map(str::to_owned);
        text.lines().find_map(depends).with_context(|| format!("nothing is known of {package}"))
    }

    /// Where packages are unpacked.
    pub(crate) fn root(&self) -> &Path {
        &self.place
    }

    /// Removes all that was fetched.
    pub(crate) fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(self.place)?)
    }
}

/// The file in a directory whose name ends so.
pub(crate) fn file_in(directory: &Path, extension: &str) -> Result<PathBuf> {
    let paths = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let mut wanted = paths.filter(|path| path.extension().is_some_and(|e| e == extension));
    wanted.next().with_context(|| format!("no .{extension} in {}", directory.display()))
}

/// Where this machine's own Debian comes from.
pub(crate) fn sources() -> Result<PathBuf> {
    for candidate in ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"] {
        let text = fs::read_to_string(candidate).unwrap_or_default();
        if text.contains(RELEASE) {
            return Ok(Path::new(candidate).to_owned());
        }
    }
    bail!(
        "packages of other suites are fetched on Debian 12, and neither /etc/apt/sources.list nor \
         /etc/apt/sources.list.d/debian.sources names {RELEASE}; `cargo xtask test --kernel host` \
         does without virtual machines"
    )
}

/// The address of the archive that this machine's own Debian comes from.
fn mirror() -> Result<String> {
    let path = sources()?;
    let text = fs::read_to_string(&path)?;
    archive(&text).with_context(|| format!("{} names no archive of {RELEASE}", path.display()))
}

/// The archive's address in apt's list of sources, of either format.
fn archive(list: &str) -> Option<String> {
    let is_ours = |suites: &str| suites.split_whitespace().any(|suite| suite == RELEASE);
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let of_paragraph = |paragraph: &str| {
        let uris = field(paragraph, "URIs:")
            .filter(|_| field(paragraph, "Suites:").is_some_and(|suites| is_ours(&suites)))?;
        uris.split_whitespace().next().map(str::to_owned)
    };
    let of_line = |line: &str| {
        let words = line.strip_prefix("deb ")?.trim_start();
        let words = words.split_once(']').filter(|_| words.starts_with('[')).map_or(words, |w| w.1);
        let (uri, suites) = words.trim_start().split_once(' ')?;
        is_ours(suites).then(|| uri.to_owned())
    };
    list.split("\n\n").find_map(of_paragraph).or_else(|| list.lines().find_map(of_line))
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[test]
    fn the_archive_is_found_in_both_formats_and_is_not_that_of_security() {
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\n# a snapshot\nURIs: {uri}\nSuites: {suites}\nComponents: main\n")
        };
        let security = stanza("http://security.example/debian", "bookworm-security");
        let main = stanza("http://archive.example/debian", "bookworm bookworm-updates");
        let found = archive(&format!("{security}\n{main}"));
        assert_eq!(found.as_deref(), Some("http://archive.example/debian"));
        let lines = "deb http://security.example/debian bookworm-security main\n\
                     # deb http://old.example/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://archive.example/debian bookworm main\n";
        assert_eq!(archive(lines).as_deref(), Some("http://archive.example/debian"));
        assert_eq!(archive(""), None);
    }
}
