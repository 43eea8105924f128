//! `agent-fw --version`: what this program is, and with `--verbose` what it is made of.

use super::report::say;
use crate::xdp;
use sha2::{Digest as _, Sha256};

/// Prints the version; `verbose`: the XDP program's hash and size, too.
pub(super) fn print(verbose: bool) {
    say!("agent-fw {}", env!("CARGO_PKG_VERSION"));
    if !verbose {
        return;
    }
    match xdp::object() {
        Some(object) => {
            let digest: String =
                Sha256::digest(object).iter().map(|byte| format!("{byte:02x}")).collect();
            say!("BPF object: {} bytes, SHA-256", object.len());
            say!("  {digest}");
        }
        None => say!("BPF object: none (built without the feature `xdp`)"),
    }
}
