//! The policy that is installed: `policy.toml`, and what it compiles to.

use super::apply::Read;
use super::failure::{Failure, Result};
use super::pending;
use crate::configuration::{Compiled, Configuration};
use crate::input::{Catalogue, Lists, OVERRIDES};
use crate::system;
use crate::system::file;
use crate::system::file::Trust;
use std::path::Path;

/// Whether a policy is installed, readable or not, or on trial.
pub fn is_installed() -> bool {
    Path::new(system::POLICY).symlink_metadata().is_ok() || pending::current().is_some()
}

/// The installed configuration and its text, or `None` if there is none.
pub fn installed() -> Result<Option<(Configuration, String)>> {
    let text = file::read_trusted(Path::new(system::POLICY), Trust::Owned);
    let Some(text) = text.map_err(Failure::Input)? else { return Ok(None) };
    let configuration = Configuration::parse(system::POLICY, &text).map_err(Failure::Input)?;
    Ok(Some((configuration, text)))
}

/// The installed policy, compiled; `None` if there is none.
pub fn compiled() -> Result<Option<(Configuration, Compiled)>> {
    Read::now().compile_any()
}

/// The catalogue with this host's own regions.
pub fn catalogue() -> Result<Catalogue> {
    Catalogue::with_overrides(Path::new(OVERRIDES)).map_err(Failure::Input)
}

/// Compiles a configuration with this host's regions and lists.
pub fn compile(configuration: &Configuration, lists: &Lists) -> Result<Compiled> {
    configuration.compile(&catalogue()?, lists).map_err(Failure::Input)
}
