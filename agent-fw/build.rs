//! Finds the BPF object that the backend xdp carries.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_XDP").is_none() {
        return;
    }
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/agent-fw.o");
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-env=AGENT_FW_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::error=the BPF object is not built: run `cargo xtask build`, \
             or build without XDP with `--no-default-features`"
        );
    }
}
