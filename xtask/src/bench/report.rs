//! The figures, as a table of 80 columns and as JSON.

use std::fmt::{self, Write as _};
use std::fs;
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bound::{Bound, Quantity};
use super::measure::Figures;
use super::subject::Comparison;

/// Where the figures were taken: they mean nothing without it.
pub(super) struct Machine {
    cores: usize,
    kernel: String,
    nft: String,
    /// Processes that wanted to run in the last minute, on average.
    load: String,
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let cores = thread::available_parallelism().context("cannot count the cores")?.get();
        let version = agent_fw_lab::run(["nft", "--version"])?;
        Ok(Self {
            cores,
            kernel: first_word("/proc/sys/kernel/osrelease")?,
            // As in `nftables v1.0.6 (Lester Gooch #5)`.
            nft: version.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
            load: first_word("/proc/loadavg")?,
        })
    }

    fn to_json(&self) -> Value {
        let Self { cores, kernel, nft, load } = self;
        json!({ "cores": cores, "kernel": kernel, "nft": nft, "load": load })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, kernel, nft, load } = self;
        write!(f, "{cores} cores, Linux {kernel}, {nft}, load {load} at the start")
    }
}

fn first_word(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

const HEADING: &str = "\
Medians of whole processes, run in turn with nft where it can do the same; the
ratio is the median of the pairs' ratios.

";

/// A group of lines for every subject.
pub(super) fn table(comparisons: &[Comparison]) -> String {
    let mut text = HEADING.to_owned();
    push_row(&mut text, ["", "agent-fw", "nft", "ratio", "bound", ""]);
    for comparison in comparisons {
        let runs = comparison.agent_fw.len();
        let unit = if comparison.nft.is_empty() { "runs" } else { "pairs" };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} ({runs} {unit})", comparison.subject);
        for quantity in Quantity::ALL {
            push_quantity(&mut text, comparison, quantity);
        }
    }
    text
}

fn push_quantity(text: &mut String, comparison: &Comparison, quantity: Quantity) {
    let amount = |value: Option<f64>| value.map(|value| quantity.amount(value));
    let bound = comparison.bound(quantity).map(|bound| match bound {
        Bound::Ratio(most) => format!("<= {most:.2}"),
        Bound::Amount(most) => format!("<= {}", quantity.amount(most)),
    });
    let verdict = comparison.meets(quantity).map(|met| if met { "ok" } else { quantity.fault() });
    push_row(
        text,
        [
            &format!("  {quantity}"),
            &amount(comparison.agent_fw(quantity)).unwrap_or_default(),
            &amount(comparison.nft(quantity)).unwrap_or_default(),
            &comparison.ratio(quantity).map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            &bound.unwrap_or_default(),
            verdict.unwrap_or_default(),
        ],
    );
}

fn push_row(text: &mut String, [what, agent_fw, nft, ratio, bound, verdict]: [&str; 6]) {
    let row = format!("{what:<22}{agent_fw:>11}{nft:>11}{ratio:>8}{bound:>13}   {verdict}");
    text.push_str(row.trim_end());
    text.push('\n');
}

/// Everything, with the figures of every run.
pub(super) fn json(machine: &Machine, comparisons: &[Comparison]) -> Value {
    json!({
        "machine": machine.to_json(),
        "met": comparisons.iter().all(Comparison::meets_its_bounds),
        "subjects": comparisons.iter().map(subject).collect::<Vec<_>>(),
    })
}

fn subject(comparison: &Comparison) -> Value {
    let runs = |runs: &[Figures]| runs.iter().map(|run| run.to_json()).collect::<Vec<_>>();
    let quantities: Vec<_> =
        Quantity::ALL.into_iter().map(|one| quantity(comparison, one)).collect();
    json!({
        "subject": comparison.subject,
        "quantities": quantities,
        "runs": { "agent_fw": runs(&comparison.agent_fw), "nft": runs(&comparison.nft) },
    })
}

/// Times in seconds, memory in bytes.
fn quantity(comparison: &Comparison, quantity: Quantity) -> Value {
    let (most_ratio, most) = match comparison.bound(quantity) {
        Some(Bound::Ratio(most)) => (Some(most), None),
        Some(Bound::Amount(most)) => (None, Some(most)),
        None => (None, None),
    };
    json!({
        "quantity": quantity.to_string(),
        "agent_fw": comparison.agent_fw(quantity),
        "nft": comparison.nft(quantity),
        "ratio": comparison.ratio(quantity),
        "most_ratio": most_ratio,
        "most": most,
        "met": comparison.meets(quantity),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Bound, Comparison, Figures, Quantity, table};

    fn run(wall: u64, peak_kib: u32) -> Figures {
        let wall = Duration::from_millis(wall);
        Figures { wall, cpu: wall / 2, peak_kib }
    }

    #[test]
    fn the_table_says_what_is_out_of_bounds_in_80_columns() {
        let pair = Comparison {
            subject: "1,000,000 prefixes applied",
            agent_fw: vec![run(2000, 180_000); 3],
            nft: vec![run(5000, 800_000); 3],
            bounds: &[
                (Quantity::Wall, Bound::Ratio(0.5)),
                (Quantity::Memory, Bound::Amount(150e6)),
            ],
        };
        let alone = Comparison {
            subject: "a million lines read, compiled and printed",
            agent_fw: vec![run(2500, 1000); 3],
            nft: Vec::new(),
            bounds: &[(Quantity::Wall, Bound::Amount(2.0))],
        };
        let table = table(&[pair, alone]);
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
        let (_, rows) = table.split_once("\n\n").unwrap();
        assert_eq!(rows, include_str!("table.txt"), "{table}");
    }
}
