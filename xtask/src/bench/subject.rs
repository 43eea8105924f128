//! What is measured: which commands, how often, and within which bounds.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::bound::{Bound, Quantity};
use super::measure::Figures;

/// In the lab `/run` is a fresh tmpfs: files there cost no disk, and vanish with the lab.
const SCRATCH: &str = "/run/bench";

/// The figures of one subject, in the order in which they were taken.
pub(super) struct Comparison {
    pub(super) subject: &'static str,
    pub(super) agent_fw: Vec<Figures>,
    /// As many, each taken right after its counterpart; none where nft has no counterpart.
    pub(super) nft: Vec<Figures>,
    pub(super) bounds: &'static [(Quantity, Bound)],
}

/// Measures everything. To be called in a lab of its own.
pub(super) fn compare_all(quick: bool) -> Result<Vec<Comparison>> {
    fs::create_dir(SCRATCH).with_context(|| format!("cannot create {SCRATCH}"))?;
    let mut comparisons = vec![region()?];
    comparisons.extend(hundred_thousand(&write_list(100_000)?)?);
    if !quick {
        let list = write_list(1_000_000)?;
        comparisons.extend(million(&list)?);
        comparisons.push(read_back()?);
        comparisons.push(compile(&list)?);
    }
    Ok(comparisons)
}

fn region() -> Result<Comparison> {
    announce("a region");
    let (agent_fw, nft) = Applied::install("region:us-1")?.measure(31)?;
    let bounds = &[(Quantity::Wall, Bound::Ratio(1.5))];
    Ok(Comparison { subject: "a region applied", agent_fw, nft, bounds })
}

/// Against nft with the prefixes in one set, as a person writes them, and with agent-fw's own
/// text, whose smaller sets nft loads faster, too.
fn hundred_thousand(list: &Path) -> Result<[Comparison; 2]> {
    announce("100,000 prefixes");
    let (agent_fw, nft) = Applied::install_beside_one_set(list)?.measure(5)?;
    let bounds = &[(Quantity::Wall, Bound::Ratio(0.5)), (Quantity::Memory, Bound::Ratio(0.25))];
    let subject = "100,000 prefixes, nft: in one set";
    let one_set = Comparison { subject, agent_fw, nft, bounds };
    let (agent_fw, nft) = Applied::install(&file(list))?.measure(5)?;
    let bounds = &[(Quantity::Wall, Bound::Ratio(0.5)), (Quantity::Memory, Bound::Ratio(0.25))];
    let subject = "100,000 prefixes, nft: the same text";
    Ok([one_set, Comparison { subject, agent_fw, nft, bounds }])
}

fn million(list: &Path) -> Result<[Comparison; 2]> {
    announce("1,000,000 prefixes");
    let (agent_fw, nft) = Applied::install_beside_one_set(list)?.measure(3)?;
    let bounds = &[(Quantity::Wall, Bound::Ratio(0.5)), (Quantity::Memory, Bound::Amount(150e6))];
    let subject = "1,000,000 prefixes, nft: in one set";
    let one_set = Comparison { subject, agent_fw, nft, bounds };
    let (agent_fw, nft) = Applied::install(&file(list))?.measure(3)?;
    let bounds = &[(Quantity::Wall, Bound::Ratio(0.5)), (Quantity::Memory, Bound::Amount(150e6))];
    let subject = "1,000,000 prefixes, nft: the same text";
    Ok([one_set, Comparison { subject, agent_fw, nft, bounds }])
}

/// What the last subject has left in the kernel is read and compared with the policy.
fn read_back() -> Result<Comparison> {
    announce("reading back");
    let agent_fw = repeat(3, &agent_fw(&["status"]))?;
    let bounds = &[(Quantity::Wall, Bound::Amount(5.0))];
    Ok(Comparison { subject: "1,000,000 prefixes read back", agent_fw, nft: Vec::new(), bounds })
}

fn compile(list: &Path) -> Result<Comparison> {
    announce("compiling");
    let argv = agent_fw(&["compile", "--format", "nft", "--allow-from", &file(list)]);
    let agent_fw = repeat(3, &argv)?;
    let bounds = &[(Quantity::Wall, Bound::Amount(2.0))];
    let subject = "a million lines read, compiled and printed";
    Ok(Comparison { subject, agent_fw, nft: Vec::new(), bounds })
}

/// A policy that is installed, and a file with which nft gives the kernel the same policy.
struct Applied {
    ruleset: PathBuf,
    /// Whether nft leaves the very table that agent-fw does.
    same_table: bool,
}

impl Applied {
    fn install(source: &str) -> Result<Self> {
        let ruleset = Path::new(SCRATCH).join("ruleset.nft");
        let compiled = agent_fw_lab::agent_fw(["compile", "--allow-from", source])?.success()?;
        write(&ruleset, &compiled)?;
        let install = ["install", "--no-boot", "--allow-from", source];
        agent_fw_lab::agent_fw(install)?.success()?;
        Ok(Self { ruleset, same_table: true })
    }

    /// Like [`Self::install`], but nft has all prefixes in one set.
    fn install_beside_one_set(list: &Path) -> Result<Self> {
        let Self { ruleset, .. } = Self::install(&file(list))?;
        let source = file(list);
        let compiled = ["compile", "--format", "json", "--allow-from", &source];
        let compiled = agent_fw_lab::agent_fw(compiled)?.success()?;
        let policy: serde_json::Value = serde_json::from_str(&compiled)?;
        // Merged: overlapping ones would cost nft time, or be refused.
        let merged = policy["admissions"][0]["ipv4"].as_array().into_iter().flatten();
        let prefixes: Vec<&str> = merged.filter_map(serde_json::Value::as_str).collect();
        let text = format!(
            "add table inet agent_fw\ndelete table inet agent_fw\ntable inet agent_fw {{\n\
             set sources {{ type ipv4_addr; flags interval; elements = {{\n{}\n}}\n}}\n\
             chain gate {{ type filter hook input priority raw;\niif lo accept\n\
             tcp dport 4118 ip saddr @sources accept\ntcp dport 4118 drop\n}}\n}}\n",
            prefixes.join(",\n")
        );
        write(&ruleset, &text)?;
        Ok(Self { ruleset, same_table: false })
    }

    /// Both commands in turn, so that whatever else the machine does falls on both. Each finds
    /// the table that the other has left. Freeing that is its own cost: the kernel (6.18) does it
    /// before the process ends.
    fn measure(&self, pairs: usize) -> Result<(Vec<Figures>, Vec<Figures>)> {
        let ours = agent_fw(&["apply"]);
        let theirs = ["nft".into(), "-f".into(), self.ruleset.clone().into_os_string()];
        let (mut agent_fw, mut nft) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            agent_fw.push(replacing(&ours)?);
            nft.push(replacing(&theirs)?);
        }
        if self.same_table {
            agent_fw_lab::agent_fw(["status"])?
                .success()
                .context("nft does not leave the table that agent-fw wants")?;
        }
        Ok((agent_fw, nft))
    }
}

/// What a command costs that puts a policy in force. One that saves itself the work, because
/// the kernel has that policy already, is not what is to be measured.
fn replacing(argv: &[OsString]) -> Result<Figures> {
    let before = chains()?;
    let figures = Figures::of(argv)?;
    ensure!(chains()? != before, "{} changed nothing in the kernel", argv[0].display());
    Ok(figures)
}

/// The kernel's chains with their handles: a chain that takes another's place has a new one.
fn chains() -> Result<String> {
    agent_fw_lab::run(["nft", "-a", "list", "chains"])
}

fn repeat(times: usize, argv: &[OsString]) -> Result<Vec<Figures>> {
    (0..times).map(|_| Figures::of(argv)).collect()
}

fn agent_fw(args: &[&str]) -> Vec<OsString> {
    let program = agent_fw_lab::agent_fw_path().into_os_string();
    std::iter::once(program).chain(args.iter().map(OsString::from)).collect()
}

fn write_list(lines: usize) -> Result<PathBuf> {
    let path = Path::new(SCRATCH).join(format!("{lines}.list"));
    write(&path, &agent_fw_lab::prefixes::list(lines))?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn file(list: &Path) -> String {
    format!("file:{}", list.display())
}

fn announce(subject: &str) {
    eprintln!("xtask: measuring {subject}");
}

impl Comparison {
    /// The median of agent-fw's runs.
    pub(super) fn agent_fw(&self, quantity: Quantity) -> Option<f64> {
        median(self.agent_fw.iter().map(|run| quantity.of(run)))
    }

    /// The median of nft's runs.
    pub(super) fn nft(&self, quantity: Quantity) -> Option<f64> {
        median(self.nft.iter().map(|run| quantity.of(run)))
    }

    /// The median of the pairs' ratios: a moment at which the machine was busy has less weight
    /// in it than in either median.
    pub(super) fn ratio(&self, quantity: Quantity) -> Option<f64> {
        let pairs = self.agent_fw.iter().zip(&self.nft);
        median(pairs.map(|(ours, theirs)| quantity.of(ours) / quantity.of(theirs)))
    }

    pub(super) fn bound(&self, quantity: Quantity) -> Option<Bound> {
        self.bounds.iter().find(|(bounded, _)| *bounded == quantity).map(|(_, bound)| *bound)
    }

    /// Whether its bound is met; `None` for a quantity that has none.
    pub(super) fn meets(&self, quantity: Quantity) -> Option<bool> {
        Some(match self.bound(quantity)? {
            Bound::Ratio(most) => self.ratio(quantity).is_some_and(|ratio| ratio <= most),
            Bound::Amount(most) => self.agent_fw(quantity).is_some_and(|amount| amount <= most),
        })
    }

    pub(super) fn meets_its_bounds(&self) -> bool {
        Quantity::ALL.into_iter().all(|quantity| self.meets(quantity) != Some(false))
    }
}

/// The middle one, or the middle of the middle two.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Bound, Comparison, Figures, Quantity, median};

    fn runs(milliseconds: &[u64]) -> Vec<Figures> {
        let wall = milliseconds.iter().copied().map(Duration::from_millis);
        wall.map(|wall| Figures { wall, cpu: wall, peak_kib: 1000 }).collect()
    }

    fn comparison(bounds: &'static [(Quantity, Bound)]) -> Comparison {
        let (agent_fw, nft) = (runs(&[30, 90, 10]), runs(&[20, 20, 20]));
        Comparison { subject: "a subject", agent_fw, nft, bounds }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn a_bound_is_met_up_to_its_value() {
        assert!(comparison(&[(Quantity::Wall, Bound::Ratio(1.5))]).meets_its_bounds());
        assert!(!comparison(&[(Quantity::Wall, Bound::Ratio(1.4))]).meets_its_bounds());
        assert!(comparison(&[(Quantity::Wall, Bound::Amount(0.03))]).meets_its_bounds());
        assert!(!comparison(&[(Quantity::Memory, Bound::Amount(1e6))]).meets_its_bounds());
    }

    #[test]
    fn a_ratio_without_a_counterpart_is_not_met() {
        let mut alone = comparison(&[(Quantity::Wall, Bound::Ratio(1.5))]);
        alone.nft.clear();
        assert!(!alone.meets_its_bounds());
    }

    #[test]
    fn what_has_no_bound_is_within_it() {
        assert_eq!(comparison(&[]).meets(Quantity::Cpu), None);
        assert!(comparison(&[]).meets_its_bounds());
    }
}
