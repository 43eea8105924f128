//! What takes minutes to make, and is kept for as long as it would be made alike.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A directory below this one that is made once for what it is made of: `NAME-DIGEST`. `make` fills it; if that
/// fails or is interrupted, the next run begins anew.
pub(crate) fn cached(
    directory: &Path,
    name: &str,
    recipe: &impl Hash,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    let place = directory.join(format!("{name}-{:016x}", hasher.finish()));
    if !place.is_dir() {
        remove_older(directory, name)?;
        let mut half: OsString = place.clone().into();
        half.push(".new");
        let half = PathBuf::from(half);
        fs::create_dir(&half).with_context(|| format!("cannot make {}", half.display()))?;
        make(&half)?;
        fs::rename(&half, &place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    place.canonicalize().with_context(|| format!("cannot find {}", place.display()))
}

/// Removes what an older recipe made, and what an interrupted run left.
fn remove_older(directory: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
