//! The layers of `agent-fw/src`, held by its `use` lines: which folder may know which, who prints,
//! and where `unsafe` is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer, from the top, with those that it may use. What a line does not have, it may not.
const LAYERS: [(&str, &[&str]); 12] = [
    (
        "cli",
        &[
            "engine",
            "host_firewall",
            "trace",
            "verify",
            "configuration",
            "nft",
            "xdp",
            "netlink",
            "system",
            "input",
            "model",
        ],
    ),
    (
        "engine",
        &[
            "host_firewall",
            "trace",
            "verify",
            "configuration",
            "nft",
            "xdp",
            "netlink",
            "system",
            "input",
            "model",
        ],
    ),
    ("host_firewall", BELOW),
    ("trace", BELOW),
    ("verify", BELOW),
    // The policy of a user, compiled.
    ("configuration", &["nft", "system", "input", "model"]),
    ("nft", DOORS),
    ("xdp", DOORS),
    ("netlink", &["model"]),
    ("system", &["model"]),
    ("input", &["model"]),
    ("model", &[]),
];
const BELOW: &[&str] = &["nft", "xdp", "netlink", "system", "input", "model"];
const DOORS: &[&str] = &["netlink", "system", "input", "model"];

/// What is not so yet: a file, the layer that it uses all the same, and why.
const EXCEPTIONS: [(&str, &str, &str); 5] = [
    ("host_firewall/detect.rs", "trace", "tells by a packet's path whose rule stopped it"),
    ("host_firewall/nftables.rs", "trace", "makes the exception before the rule of such a path"),
    ("host_firewall/step.rs", "trace", "tests with a packet whether a step helped"),
    ("input/list.rs", "system", "opens the lists that it reads"),
    ("input/region.rs", "system", "opens regions.toml"),
];

/// Where `unsafe` is allowed, by the beginning of the path.
const UNSAFE: [&str; 2] = ["netlink/", "nft/kernel/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file: its path below `src`, and its text without its tests.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
            let name = path.strip_prefix(root()).expect("below src").display().to_string();
            found.push((name, text[..end].to_owned()));
        }
    }
    assert!(found.len() > 100, "only {} files were found", found.len());
    found
}

/// The layer that a file is in: its folder, or the file itself.
fn layer_of(name: &str) -> &str {
    name.split('/').next().unwrap_or(name).trim_end_matches(".rs")
}

/// The layers that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let after = code.flat_map(|line| line.split("crate::").skip(1));
    after.map(|rest| rest.split(|c| !is_word(c)).next().unwrap_or_default()).collect()
}

#[test]
fn no_layer_uses_one_above_it_or_beside_it() {
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for (name, text) in sources() {
        let layer = layer_of(&name);
        let Some((_, allowed)) = LAYERS.iter().find(|(of, _)| *of == layer) else { continue };
        for used in named(&text) {
            let is_layer = LAYERS.iter().any(|(of, _)| *of == used);
            if !is_layer || used == layer || allowed.contains(&used) {
                continue;
            }
            match EXCEPTIONS.iter().position(|(file, of, _)| *file == name && *of == used) {
                Some(exception) => drop(needed.insert(exception)),
                None => wrong.push(format!("{name} uses {used}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(needed.len(), EXCEPTIONS.len(), "an exception is needed no more: take it out");
}

#[test]
fn the_picture_shows_the_layers_from_the_top() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/architecture.md");
    let page = fs::read_to_string(path).expect("the page");
    let picture = page.split("```").nth(1).expect("a picture");
    let shown: Vec<&str> = picture.split_whitespace().skip(1).collect();
    let layers: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(shown, layers);
    // What is on one line does not use each other, and nothing uses what is above it.
    for line in picture.lines().skip(1) {
        let line: Vec<&str> = line.split_whitespace().collect();
        for (name, allowed) in LAYERS.iter().filter(|(name, _)| line.contains(name)) {
            let place = |of: &str| layers.iter().position(|layer| *layer == of);
            let is_below = |of: &&str| place(of) > place(name) && !line.contains(of);
            assert!(allowed.iter().all(is_below), "{name}");
        }
    }
}

#[test]
fn every_file_is_in_a_layer() {
    let known: BTreeSet<&str> = LAYERS.iter().map(|(of, _)| *of).chain(["lib", "main"]).collect();
    let names = sources().into_iter().map(|(name, _)| name);
    let others: Vec<String> = names.filter(|name| !known.contains(layer_of(name))).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn only_the_command_line_prints() {
    let prints = |text: &str| ["println!", "print!", "eprintln!"].iter().any(|p| text.contains(p));
    let others = sources().into_iter().filter(|(name, _)| layer_of(name) != "cli");
    let others: Vec<String> =
        others.filter(|(_, text)| prints(text)).map(|(name, _)| name).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn unsafe_code_is_where_the_kernel_or_libnftnl_is_spoken_to() {
    let is_allowed = |name: &str| UNSAFE.iter().any(|place| name.starts_with(place));
    let has = |text: &str| text.contains("unsafe {") || text.contains("unsafe_code");
    let (there, others): (Vec<_>, Vec<_>) = sources()
        .into_iter()
        .filter(|(_, text)| has(text))
        .map(|(name, _)| name)
        .partition(|name| is_allowed(name));
    assert!(!there.is_empty() && others.is_empty(), "{others:?}");
}
