//! Whether the kernel has what the table needs at the next boot, too.

use super::check::{Check, Health};
use crate::system::systemd;
use std::path::Path;

/// The modules that are loaded before the kernel may be forbidden to load any.
pub(super) fn modules() -> Check {
    let why = "with kernel.modules_disabled=1, what is not loaded by then is not loaded at all";
    let check = |health, seen| Check::new("modules at boot", why, health, seen);
    let is_disabled = std::fs::read_to_string("/proc/sys/kernel/modules_disabled")
        .is_ok_and(|value| value.trim() == "1");
    if !Path::new("/sys/module/nf_tables/initstate").exists() {
        return check(Health::Good, "nf_tables is part of this kernel");
    }
    if systemd::loads_modules() {
        return check(Health::Good, "systemd-modules-load loads nf_tables early");
    }
    let health = if is_disabled { Health::Bad } else { Health::Note };
    let seen = "nf_tables is a module, and nothing loads it before systemd-sysctl";
    check(health, seen).advise("run `agent-fw install` again without --no-boot: it writes the file")
}
