//! What a machine's instructions run on.

use std::fmt;
use std::fs::{self, OpenOptions};

/// What a machine's instructions run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// This machine's processor.
    Kvm,
    /// An emulator of one: everything takes ten times as long.
    Tcg,
}

impl Accelerator {
    /// The faster one that works here.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if opens && can_virtualize(&processors) { Self::Kvm } else { Self::Tcg }
    }

    /// What QEMU calls it, with its settings.
    pub(super) const fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "emulation",
        })
    }
}

/// Whether processors, as `/proc/cpuinfo` describes them, can run a machine themselves. A
/// `/dev/kvm` that opens does not say so: it may be made of software, and a stock kernel dies on it.
fn can_virtualize(processors: &str) -> bool {
    let flags = processors.lines().filter_map(|line| line.split_once(':'));
    let mut flags = flags.filter(|(name, _)| name.trim_end() == "flags");
    flags.any(|(_, flags)| flags.split(' ').any(|flag| ["vmx", "svm"].contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::can_virtualize;

    #[test]
    fn only_a_flag_of_the_processor_says_that_it_can_run_machines() {
        assert!(can_virtualize("processor\t: 0\nflags\t\t: fpu vme svm nx\nbugs\t\t: none\n"));
        assert!(can_virtualize("flags\t\t: fpu vmx\n"));
        // What a virtual processor without nesting has, and an Intel one's own list.
        assert!(!can_virtualize("flags\t\t: fpu svm_lock hypervisor\nvmx flags\t: vnmi\n"));
        assert!(!can_virtualize(""));
    }
}
