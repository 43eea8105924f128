//! Finds the BPF object that the backend xdp carries.

use std::env;
use std::path::Path;

/// Where `cargo xtask build` leaves it; `src/xdp/mod.rs` includes it from there.
const OBJECT: &str = "../target/bpf/agent-fw.o";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_XDP").is_none() {
        return;
    }
    // By a path from this package: a workspace that was moved or copied, its target with it, must
    // not go on with the object at the old place.
    println!("cargo::rerun-if-changed={OBJECT}");
    if !Path::new(OBJECT).is_file() {
        println!(
            "cargo::error=the BPF object is not built: run `cargo xtask build`, \
             or build without XDP with `--no-default-features`"
        );
    }
}
