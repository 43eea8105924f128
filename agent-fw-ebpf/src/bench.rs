//! The BPF object that measures: the program itself, and the same with LPM tries, on frames whose
//! source address is drawn at random before each decision. One frame again and again would find
//! every table in the nearest cache.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use agent_fw_ebpf::kernel::maps::Maps;
    use agent_fw_ebpf::kernel::{AtDriver, passes, passes_by};
    use agent_fw_ebpf::table::{Shape, Tables};
    use agent_fw_ebpf::{Label, PassReason, V4, V6};
    use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::Array;
    use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
    use aya_ebpf::programs::XdpContext;

    const NO_PREALLOC: u32 = 1;

    #[map]
    static LPM_V4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(1, NO_PREALLOC);
    #[map]
    static LPM_V6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, NO_PREALLOC);
    /// The state of the drawing, and the eight first 16 bits that IPv6's addresses can have.
    #[map]
    static DRAWN: Array<[u64; 9]> = Array::with_max_entries(1, 0);

    /// What a program costs that does nothing.
    #[xdp(frags)]
    fn empty(_context: XdpContext) -> u32 {
        XDP_PASS
    }

    /// The program, on the frame as it is.
    #[xdp(frags)]
    fn as_is(context: XdpContext) -> u32 {
        verdict(passes(AtDriver::from(context)))
    }

    /// What the drawing costs.
    #[xdp(frags)]
    fn draw_v4(context: XdpContext) -> u32 {
        verdict(draw_into_v4(&context))
    }

    #[xdp(frags)]
    fn table_v4(context: XdpContext) -> u32 {
        verdict(draw_into_v4(&context) && passes(AtDriver::from(context)))
    }

    #[xdp(frags)]
    fn lpm_v4(context: XdpContext) -> u32 {
        verdict(draw_into_v4(&context) && passes_by(AtDriver::from(context), &Tries))
    }

    #[xdp(frags)]
    fn draw_v6(context: XdpContext) -> u32 {
        verdict(draw_into_v6(&context))
    }

    #[xdp(frags)]
    fn table_v6(context: XdpContext) -> u32 {
        verdict(draw_into_v6(&context) && passes(AtDriver::from(context)))
    }

    #[xdp(frags)]
    fn lpm_v6(context: XdpContext) -> u32 {
        verdict(draw_into_v6(&context) && passes_by(AtDriver::from(context), &Tries))
    }

    /// A frame for the stack, from any address that it takes for a host's.
    #[xdp(frags)]
    fn into_stack_v4(context: XdpContext) -> u32 {
        verdict(draw_host_into_v4(&context))
    }

    /// The same of IPv6, which has no checksum.
    #[xdp(frags)]
    fn into_stack_v6(context: XdpContext) -> u32 {
        verdict(draw_into_v6(&context))
    }

    #[inline(always)]
    fn verdict(passes: bool) -> u32 {
        if passes { XDP_PASS } else { XDP_DROP }
    }

    /// Any address of IPv4 into an untagged frame's source.
    #[inline(always)]
    fn draw_into_v4(context: &XdpContext) -> bool {
        const SOURCE_AT: usize = 14 + 12;
        let Some((drawn, _)) = draw() else { return false };
        write(context, SOURCE_AT, drawn as u32)
    }

    /// Of 1.0.0.0 to 126.255.255.255, with the checksum that the header then has: the stack looks.
    #[inline(always)]
    fn draw_host_into_v4(context: &XdpContext) -> bool {
        const HEADER_AT: usize = 14;
        const CHECKSUM_AT: usize = HEADER_AT + 10;
        const SOURCE_AT: usize = HEADER_AT + 12;
        let Some((drawn, _)) = draw() else { return false };
        let first = 1 + (drawn >> 32) as u32 % 126;
        let source = first << 24 | drawn as u32 & 0xff_ffff;
        if !write(context, SOURCE_AT, source.to_be()) || !write(context, CHECKSUM_AT, 0_u16) {
            return false;
        }
        let Some(header) = read::<[u16; 10]>(context, HEADER_AT) else { return false };
        let mut sum = 0_u32;
        for word in header {
            sum += u32::from(word);
        }
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        write(context, CHECKSUM_AT, !(sum as u16))
    }

    /// The first 64 bits of an address of IPv6 likewise.
    #[inline(always)]
    fn draw_into_v6(context: &XdpContext) -> bool {
        const SOURCE_AT: usize = 14 + 8;
        let Some((drawn, first)) = draw() else { return false };
        write(context, SOURCE_AT, (first << 48 | drawn >> 16).to_be())
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the state is the kernel's")]
    fn draw() -> Option<(u64, u64)> {
        // SAFETY: one test runs at a time.
        let [state, firsts @ ..] = unsafe { &mut *DRAWN.get_ptr_mut(0)? };
        // Steps by the golden ratio, mixed by one product.
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ *state >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let drawn = mixed ^ mixed >> 32;
        Some((drawn, firsts[(drawn & 7) as usize]))
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the frame is the kernel's")]
    fn write<T>(context: &XdpContext, at: usize, value: T) -> bool {
        let from = context.data() + at;
        if from + size_of::<T>() > context.data_end() {
            return false;
        }
        // SAFETY: the bytes lie in the frame.
        unsafe { (from as *mut T).write_unaligned(value) };
        true
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the frame is the kernel's")]
    fn read<T: Copy>(context: &XdpContext, at: usize) -> Option<T> {
        let from = context.data() + at;
        if from + size_of::<T>() > context.data_end() {
            return None;
        }
        // SAFETY: the bytes lie in the frame.
        Some(unsafe { (from as *const T).read_unaligned() })
    }

    /// The tables, with LPM tries for the addresses.
    struct Tries;

    impl Tables for Tries {
        #[inline(always)]
        fn find_v4(&self, _shape: Shape, address: V4) -> Result<Option<Label>, PassReason> {
            let found = LPM_V4.get(&Key::new(32, address.0.to_be_bytes()));
            Ok(found.and_then(|label| Label::new(*label as u16)))
        }

        #[inline(always)]
        fn find_v4_by_block(
            &self,
            shape: Shape,
            _label: Option<Label>,
            address: V4,
        ) -> Result<Option<Label>, PassReason> {
            self.find_v4(shape, address)
        }

        #[inline(always)]
        fn find_v6(
            &self,
            _shape: Shape,
            _deep: bool,
            address: V6,
        ) -> Result<Option<Label>, PassReason> {
            let found = LPM_V6.get(trie_key(&mut [0; 5], address));
            Ok(found.and_then(|label| Label::new(*label as u16)))
        }

        fn v4_filter(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v4_node(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v4_word(&self, _index: u32) -> Option<u32> {
            None
        }

        fn v6_filter(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v6_node(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v6_word(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v6_deep(&self, _index: u32) -> Option<u64> {
            None
        }

        fn v6_low(&self, _index: u32) -> Option<u64> {
            None
        }

        #[inline(always)]
        fn mac_set(&self, label: Label) -> Option<u32> {
            Maps.mac_set(label)
        }

        #[inline(always)]
        fn has_mac(&self, key: u64) -> bool {
            Maps.has_mac(key)
        }

        #[inline(always)]
        fn ports(&self, index: u32) -> Option<u64> {
            Maps.ports(index)
        }
    }

    /// The key of one address, word by word: left to itself, the compiler writes two at once,
    /// across a boundary that the verifier holds to.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the key's layout")]
    fn trie_key(words: &mut [u32; 5], address: V6) -> &Key<[u8; 16]> {
        let V6 { high, low } = address;
        let halves = [high >> 32, high, low >> 32, low];
        // SAFETY: the words are there; a key is its length and then its bytes, in any alignment.
        unsafe {
            (&raw mut words[0]).write_volatile(128);
            for (word, half) in words[1..].iter_mut().zip(halves) {
                (&raw mut *word).write_volatile((half as u32).to_be());
            }
            &*words.as_ptr().cast()
        }
    }

    #[expect(unsafe_code, reason = "the kernel looks for the licence here")]
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("This is a program for the kernel: `cargo xtask bench xdp` builds and runs it.");
}
