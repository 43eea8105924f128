//! Examples of each command, for its help and its manual page. A test runs every one of them.

/// What is typed, and what that does.
pub type Example = (&'static str, &'static str);

/// The examples of each command that has some, by its words.
pub const EXAMPLES: &[(&[&str], &[Example])] = &[
    (
        &["install"],
        &[
            (
                "agent-fw install --allow-from region:us-1",
                "admit a region's published subnets alone",
            ),
            (
                "agent-fw install --allow-from region:us-1 --allow-from 192.0.2.0/24 --dry-run",
                "show what would change",
            ),
            (
                "agent-fw install --allow-from 192.0.2.7 --replace --confirm 60",
                "admit an address instead, taken back unless you confirm it",
            ),
            (
                "agent-fw install --direction agent-initiated --replace",
                "close the port to every source: the agent opens all connections",
            ),
        ],
    ),
    (
        &["allow"],
        &[
            ("agent-fw allow 203.0.113.9", "one address more"),
            ("agent-fw allow region:jp-1 192.0.2.0/24 --dry-run", "show what would change"),
        ],
    ),
    (
        &["deny"],
        &[
            ("agent-fw deny 34.205.5.0/28", "leave out a part of a region"),
            ("agent-fw deny 34.205.5.7 --dry-run", "show what would change"),
        ],
    ),
    (
        &["set"],
        &[
            ("agent-fw set --log", "log refused packets from now on"),
            ("agent-fw set --log=no", "and no longer"),
            ("agent-fw set --direction manager-initiated", "the manager alone opens connections"),
        ],
    ),
    (
        &["confirm"],
        &[
            ("agent-fw allow 203.0.113.9 --confirm 60", "a change on trial"),
            ("agent-fw confirm", "keep it"),
        ],
    ),
    (
        &["undo"],
        &[
            ("agent-fw undo --dry-run", "show what would change"),
            ("agent-fw undo", "go back to the policy before the last change"),
        ],
    ),
    (
        &["history"],
        &[
            ("agent-fw history", "who changed what, when"),
            ("agent-fw history --json", "the same for programs"),
        ],
    ),
    (
        &["apply"],
        &[
            ("agent-fw apply --dry-run", "what an edited policy.toml would change"),
            ("agent-fw apply", "put it into force"),
        ],
    ),
    (&["policy", "show"], &[("agent-fw policy show", "the installed policy.toml")]),
    (&["policy", "edit"], &[("EDITOR=nano agent-fw policy edit", "in an editor of your choice")]),
    (
        &["uninstall"],
        &[("agent-fw uninstall --keep-policy", "out of force until the next `apply`")],
    ),
    (
        &["compile"],
        &[
            ("agent-fw compile --allow-from region:us-1", "the ruleset, for a review"),
            ("agent-fw compile --allow-from region:us-1 --explain-cost", "what a packet costs"),
        ],
    ),
    (
        &["status"],
        &[
            ("agent-fw status", "what is in force, and what it has counted"),
            ("agent-fw status --check --json", "for monitoring"),
        ],
    ),
    (&["verify"], &[("agent-fw verify", "prove what the kernel does with every packet")]),
    (
        &["explain"],
        &[
            ("agent-fw explain --from 34.205.5.1", "does this source reach the port?"),
            ("agent-fw explain --all", "and every source that is admitted?"),
        ],
    ),
    (&["doctor"], &[("agent-fw doctor", "what is wrong, and what to do")]),
    (&["regions", "list"], &[("agent-fw regions list", "the regions whose subnets are known")]),
    (&["regions", "show"], &[("agent-fw regions show us-1", "a region's subnets")]),
    (&["ports"], &[("agent-fw ports --role agent", "what an agent needs")]),
    (&["metrics"], &[("agent-fw metrics", "for Prometheus, on standard output")]),
];

/// The examples of a command, as its help has them.
pub(super) fn in_help(examples: &[Example]) -> String {
    let lines = examples.iter().map(|(words, what)| format!("  {words}\n      {what}"));
    format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n"))
}
