//! Another's BPF programs on an interface: agent-fw's own object under other names, without a
//! policy's constants. It lets every packet pass.

use agent_fw::xdp::OBJECT;
use anyhow::{Context as _, Result, ensure};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, SchedClassifier, SkLookup, TcAttachType, Xdp,
    XdpMode,
};
use aya::{Ebpf, EbpfLoader};

/// Its program for XDP.
pub(crate) const XDP: &str = "others_drive";
/// Its program for the tc hook.
pub(crate) const CLASSIFIER: &str = "others_tc__";
/// The same in agent-fw's object.
const OURS: [(&str, &str); 2] = [("agent_fw_xdp", XDP), ("agent_fw_tc", CLASSIFIER)];

/// The object, which loads as any other does.
pub(crate) fn object() -> Result<Vec<u8>> {
    let mut object = OBJECT.to_vec();
    for (ours, theirs) in OURS {
        ensure!(ours.len() == theirs.len(), "a name is exchanged in its place");
        let places: Vec<usize> = (0..object.len())
            .filter(|place| object[*place..].starts_with(ours.as_bytes()))
            .collect();
        ensure!(!places.is_empty(), "the object has no {ours}");
        for place in places {
            object[place..place + theirs.len()].copy_from_slice(theirs.as_bytes());
        }
    }
    Ok(object)
}

/// Another's program at XDP, for as long as this lives.
pub(crate) fn at_xdp(interface: &str, mode: XdpMode) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(&object()?)?;
    let program: &mut Xdp = ebpf.program_mut(XDP).context("no program")?.try_into()?;
    program.load()?;
    program.attach(interface, mode)?;
    Ok(ebpf)
}

/// Another's program at the tc hook, for as long as this lives.
pub(crate) fn at_tc(interface: &str, order: LinkOrder) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(&object()?)?;
    let program: &mut SchedClassifier =
        ebpf.program_mut(CLASSIFIER).context("no program")?.try_into()?;
    program.load()?;
    let order = TcAttachOptions::TcxOrder(order);
    program.attach_with_options(interface, TcAttachType::Ingress, order)?;
    Ok(ebpf)
}

/// Another's program that chooses sockets for this network namespace, for as long as this lives. It
/// leaves every choice to the kernel.
pub(crate) fn choose_sockets(name: &str) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(&returning(1, "sk_lookup", name))?;
    let program: &mut SkLookup = ebpf.program_mut(name).context("no program")?.try_into()?;
    program.load()?;
    program.attach(std::fs::File::open("/proc/thread-self/ns/net")?)?;
    Ok(ebpf)
}

/// Another's program at an interface's exit, for as long as this lives: it drops everything.
pub(crate) fn at_exit(interface: &str) -> Result<Ebpf> {
    /// `TC_ACT_SHOT`.
    const DROPS: u32 = 2;
    let mut ebpf = EbpfLoader::new().load(&returning(DROPS, "classifier", "deny"))?;
    let program: &mut SchedClassifier =
        ebpf.program_mut("deny").context("no program")?.try_into()?;
    program.load()?;
    program.attach(interface, TcAttachType::Egress)?;
    Ok(ebpf)
}

/// Which packets of a cgroup's sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// A program that drops a cgroup's packets, as systemd makes one of `IPAddressDeny=any`, for as long as
/// this lives.
pub(crate) fn at_cgroup(directory: &str, direction: Direction) -> Result<Ebpf> {
    let (section, place) = match direction {
        Direction::In => ("cgroup_skb/ingress", CgroupSkbAttachType::Ingress),
        Direction::Out => ("cgroup_skb/egress", CgroupSkbAttachType::Egress),
    };
    let mut ebpf = EbpfLoader::new().load(&returning(0, section, "deny"))?;
    let program: &mut CgroupSkb = ebpf.program_mut("deny").context("no program")?.try_into()?;
    program.load()?;
    program.attach(std::fs::File::open(directory)?, place, CgroupAttachMode::Single)?;
    Ok(ebpf)
}

/// An object file of one program of two instructions: `r0 = VALUE`, `exit`.
fn returning(value: u32, section_name: &str, name: &str) -> Vec<u8> {
    /// The sizes of ELF's headers, and of a symbol.
    const FILE: usize = 64;
    const SECTION: usize = 64;
    const SYMBOL: usize = 24;
    let code: [u64; 2] = [u64::from(value) << 32 | 0xb7, 0x95];
    let names = format!("\0{section_name}\0.strtab\0.symtab\0{name}\0");
    let at = |of: &str| u32::try_from(names.find(of).unwrap_or(0)).unwrap_or(0);
    let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    // Of the program: global, a function, in the first section.
    let symbol = [
        &at(&format!("{name}\0")).to_le_bytes()[..],
        &[0x12, 0, 1, 0],
        &[0; 8],
        &(code.len() as u64).to_le_bytes(),
    ]
    .concat();
    let symbols = [vec![0; SYMBOL], symbol].concat();
    let [code_at, names_at] = [FILE, FILE + code.len()];
    let symbols_at = (names_at + names.len()).next_multiple_of(8);
    let sections_at = symbols_at + symbols.len();
    let section =
        |name: u32, kind: u32, flags: u64, at: usize, size: usize, link: [u32; 2], each| {
            let [at, size] = [at as u64, size as u64];
            let each: u64 = each;
            [
                &name.to_le_bytes()[..],
                &kind.to_le_bytes(),
                &flags.to_le_bytes(),
                &[0; 8],
                &at.to_le_bytes(),
                &size.to_le_bytes(),
                &link[0].to_le_bytes(),
                &link[1].to_le_bytes(),
                &8_u64.to_le_bytes(),
                &each.to_le_bytes(),
            ]
            .concat()
        };
    let sections = [
        vec![0; SECTION],
        // `SHT_PROGBITS`, `SHF_ALLOC | SHF_EXECINSTR`; `SHT_STRTAB`; `SHT_SYMTAB`.
        section(at(section_name), 1, 6, code_at, code.len(), [0, 0], 0),
        section(at(".strtab"), 3, 0, names_at, names.len(), [0, 0], 0),
        section(at(".symtab"), 2, 0, symbols_at, symbols.len(), [2, 1], SYMBOL as u64),
    ]
    .concat();
    let file = [
        // 64 bits, little-endian, version 1; a relocatable file for BPF (`EM_BPF`).
        &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0, 247, 0, 1, 0, 0, 0],
        &[0; 16],
        &(sections_at as u64).to_le_bytes(),
        &[0; 4],
        &[64, 0, 0, 0, 0, 0, 64, 0, 4, 0, 2, 0],
    ]
    .concat();
    let gap = vec![0; symbols_at - names_at - names.len()];
    [file, code, names.into_bytes(), gap, symbols, sections].concat()
}
