//! What is compared, in which unit, and how much of it is allowed.

use std::fmt;

use super::measure::Figures;

/// One of the figures of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    Wall,
    Cpu,
    Memory,
}

impl Quantity {
    pub(super) const ALL: [Self; 3] = [Self::Wall, Self::Cpu, Self::Memory];

    /// In seconds, or in bytes.
    pub(super) fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Wall => figures.wall.as_secs_f64(),
            Self::Cpu => figures.cpu.as_secs_f64(),
            Self::Memory => f64::from(figures.peak_kib) * 1024.0,
        }
    }

    /// An amount with its unit, for people to read.
    pub(super) fn amount(self, value: f64) -> String {
        match self {
            Self::Memory if value < 100e6 => format!("{:.1} MB", value / 1e6),
            Self::Memory => format!("{:.0} MB", value / 1e6),
            Self::Wall | Self::Cpu if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Self::Wall | Self::Cpu => format!("{value:.2} s"),
        }
    }

    /// What is said of a figure that is out of bounds.
    pub(super) fn fault(self) -> &'static str {
        match self {
            Self::Wall | Self::Cpu => "too slow",
            Self::Memory => "too big",
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wall => "time",
            Self::Cpu => "CPU time",
            Self::Memory => "peak memory",
        })
    }
}

/// The most that agent-fw may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// So many times what nft takes.
    Ratio(f64),
    /// So much, in seconds or bytes.
    Amount(f64),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Quantity;
    use crate::bench::measure::Figures;

    #[test]
    fn amounts_have_a_unit_that_suits_them() {
        assert_eq!(Quantity::Wall.amount(0.012_34), "12.3 ms");
        assert_eq!(Quantity::Cpu.amount(5.678), "5.68 s");
        assert_eq!(Quantity::Memory.amount(4.2e6), "4.2 MB");
        assert_eq!(Quantity::Memory.amount(763.4e6), "763 MB");
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        let wall = Duration::from_secs(1);
        let figures = Figures { wall, cpu: wall, peak_kib: 1000 };
        assert!((Quantity::Memory.of(&figures) - 1_024_000.0).abs() < 0.5);
    }
}
