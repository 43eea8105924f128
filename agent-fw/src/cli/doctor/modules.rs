//! Whether the kernel has what the table needs at the next boot, too.

use super::check::{Check, Health};
use crate::configuration::Configuration;
use crate::system::systemd;
use std::path::Path;

/// The modules that are loaded before the kernel may be forbidden to load any.
pub(super) fn modules(configuration: Option<&Configuration>) -> Check {
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
    let check = check(health, seen);
    let Some(configuration) = configuration else { return check };
    let command = configuration.install_command();
    check.advise(format!("run `{command}`: it has systemd-modules-load load it"))
}
