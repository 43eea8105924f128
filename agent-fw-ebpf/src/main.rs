//! The BPF object: the same program for XDP and for tc. A build for the host only says so.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use agent_fw_ebpf::kernel::{AtDriver, AtStack, passes};
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};

    /// At the driver.
    #[xdp(frags)]
    fn agent_fw_xdp(context: XdpContext) -> u32 {
        if passes(AtDriver::from(context)) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
    }

    /// Where another program has the driver: at the stack's entrance, the next program's turn
    /// after this one.
    #[classifier]
    fn agent_fw_tc(context: TcContext) -> i32 {
        if passes(AtStack::from(context)) { TC_ACT_UNSPEC } else { TC_ACT_SHOT as i32 }
    }

    #[expect(unsafe_code, reason = "the kernel looks for the licence here")]
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("This is a program for the kernel: build it with `cargo xtask build`.");
}
