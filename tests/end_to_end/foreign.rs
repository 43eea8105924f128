//! Another's BPF programs on an interface: agent-fw's own object under other names, without a
//! policy's constants. It lets every packet pass.

use agent_fw::xdp::OBJECT;
use anyhow::{Context as _, Result, ensure};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
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
