//! Who runs this program.

use nix::unistd::{Uid, User};

/// `AUDIT_UID_UNSET` of linux/audit.h: nobody has logged in.
const UNSET: u32 = u32::MAX;

/// The name of the person behind this process: who called sudo, who has logged in, or whose process it
/// is. For the record: a process of root's can say what it likes.
pub fn name() -> String {
    let by_sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let logged_in = || {
        let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
        text.trim().parse().ok().filter(|uid| *uid != UNSET).map(Uid::from_raw).map(name_of)
    };
    by_sudo.or_else(logged_in).unwrap_or_else(|| name_of(Uid::current()))
}

fn name_of(uid: Uid) -> String {
    let known = User::from_uid(uid).ok().flatten();
    known.map_or_else(|| format!("user {uid}"), |user| user.name)
}
