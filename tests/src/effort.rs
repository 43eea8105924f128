//! How often a test repeats what chance decides.

/// Set in virtual machines, where everything takes ten times as long.
pub const EMULATED: &str = "AGENT_FW_EMULATED";
/// Says, in the environment, that only tests are wanted which need what many a kernel lacks: VRF,
/// MPLS, IPVS.
pub const RARE: &str = "AGENT_FW_RARE";
/// Says, in the environment, that everything is wanted that may depend on the kernel, however long
/// it takes. Otherwise an emulated machine runs what only another kernel can show.
pub const WHOLE: &str = "AGENT_FW_WHOLE";

/// Whether the environment asks for everything.
#[must_use]
pub fn is_whole() -> bool {
    std::env::var_os(WHOLE).is_some()
}

/// Whether this is such a machine.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED).is_some()
}

/// `full` rounds, or a sixth of them under emulation: what needs many rounds to be met is met on
/// the host, and what depends on the kernel is met in a few.
#[must_use]
pub fn rounds(full: u32) -> u32 {
    if is_emulated() { full.div_ceil(6) } else { full }
}
