//! A device of our own, from which a frame is led into the entrance of a real one.
//!
//! It is a TAP device: the kernel takes it away, with all that hangs on it, when this process ends,
//! however it ends.
#![allow(unsafe_code, reason = "the device is asked for by an ioctl")]

use crate::model::MacAddr;
use crate::netlink::message::attribute;
use crate::netlink::{link, message};
use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

/// `TUNSETIFF` of linux/if_tun.h, and what it takes: a name, flags, the rest of `struct ifreq`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFREQ_BYTES: usize = 40;
const NAME_BYTES: usize = 16;
/// `IFF_TAP | IFF_NO_PI`: Ethernet frames, without anything before them.
const FLAGS: u16 = 0x0002 | 0x1000;
/// `IFF_TUN | IFF_NO_PI`: packets.
const FLAGS_WITHOUT_ETHERNET: u16 = 0x0001 | 0x1000;
/// The kernel puts a number in the place of `%d`.
const NAME: &[u8] = b"agent-fw-%d";

/// The device, as long as it is held.
pub(crate) struct Tap {
    file: File,
    index: u32,
}

impl Tap {
    /// Makes the device with this MAC address: frames to it are then taken for this host's. Without
    /// one, it is for packets without Ethernet.
    pub(crate) fn make(mac: Option<MacAddr>) -> anyhow::Result<Self> {
        let path = "/dev/net/tun";
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.with_context(|| {
            format!("cannot open {path}, by which a packet is to be sent (module tun)")
        })?;
        let mut request = [0_u8; IFREQ_BYTES];
        request[..NAME.len()].copy_from_slice(NAME);
        let flags = if mac.is_some() { FLAGS } else { FLAGS_WITHOUT_ETHERNET };
        request[NAME_BYTES..NAME_BYTES + 2].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the kernel reads and writes a `struct ifreq`, for which there is room.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        Errno::result(result).context("cannot make a TAP device")?;
        let name = message::text(&request[..NAME_BYTES]);
        let name = name.trim_end_matches('\0');
        let all = link::list()?;
        let found = all.iter().find(|interface| interface.name == name);
        let index = found.with_context(|| format!("the device {name} has gone"))?.index;
        let tap = Self { file, index };
        tap.bring_up(mac).with_context(|| format!("cannot bring {name} up"))?;
        Ok(tap)
    }

    fn bring_up(&self, mac: Option<MacAddr>) -> nix::Result<()> {
        /// `IFLA_INET6_ADDR_GEN_MODE` and `IN6_ADDR_GEN_MODE_NONE`: it is to have no addresses.
        const ADDR_GEN_MODE: u16 = 8;
        const MODE_NONE: u8 = 1;
        const AF_INET6: u16 = 10;
        const IFF_UP: u32 = 1;
        const IFF_NOARP: u32 = 0x80;
        let mut quiet = self.link(0, 0);
        let mode = attribute(ADDR_GEN_MODE, &[MODE_NONE]);
        quiet.extend(attribute(libc::IFLA_AF_SPEC, &attribute(AF_INET6, &mode)));
        // A kernel without IPv6 has no such mode, and needs none.
        let _ = message::order(libc::RTM_NEWLINK, 0, &quiet);
        let mut up = self.link(IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP);
        up.extend(mac.map(|mac| attribute(libc::IFLA_ADDRESS, &mac.0)).unwrap_or_default());
        message::order(libc::RTM_NEWLINK, 0, &up)
    }

    /// `struct ifinfomsg`.
    fn link(&self, flags: u32, change: u32) -> Vec<u8> {
        [[0; 4], self.index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
    }

    /// Leads all that comes from the device into the entrance of the interface.
    pub(crate) fn lead_into(&self, interface: u32) -> anyhow::Result<()> {
        /// `TC_H_CLSACT`, its parent and its entrance; `ETH_P_ALL` with priority 1.
        const CLSACT: u32 = 0xffff_0000;
        const CLSACT_PARENT: u32 = 0xffff_fff1;
        const INGRESS: u32 = 0xffff_fff2;
        const TCA_KIND: u16 = 1;
        const TCA_OPTIONS: u16 = 2;
        let every_protocol = u32::from(0x0003_u16.to_be()) | 1 << 16;
        let mut qdisc = self.place(CLSACT, CLSACT_PARENT, 0);
        qdisc.extend(attribute(TCA_KIND, b"clsact\0"));
        let make = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        message::order(libc::RTM_NEWQDISC, make, &qdisc)
            .context("cannot add clsact (module sch_ingress)")?;
        let mut filter = self.place(0, INGRESS, every_protocol);
        filter.extend(attribute(TCA_KIND, b"u32\0"));
        filter.extend(attribute(TCA_OPTIONS, &redirection(interface)));
        message::order(libc::RTM_NEWTFILTER, make, &filter)
            .context("cannot add a filter (modules cls_u32, act_mirred)")
    }

    /// `struct tcmsg`.
    fn place(&self, handle: u32, parent: u32, info: u32) -> Vec<u8> {
        [
            [0; 4],
            self.index.to_ne_bytes(),
            handle.to_ne_bytes(),
            parent.to_ne_bytes(),
            info.to_ne_bytes(),
        ]
        .concat()
    }

    /// Sends a frame on its way.
    pub(crate) fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write(frame).context("cannot send the packet")?;
        if written == frame.len() { Ok(()) } else { Err(anyhow!("only {written} bytes were sent")) }
    }
}

/// The options of a filter `u32` that matches everything, with the action `mirred ingress
/// redirect`.
fn redirection(interface: u32) -> Vec<u8> {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    /// `TC_U32_TERMINAL`.
    const TERMINAL: u8 = 1;
    /// `TC_ACT_STOLEN`, `TCA_INGRESS_REDIR`.
    const STOLEN: u32 = 4;
    const INGRESS_REDIRECT: u32 = 3;
    // `struct tc_u32_sel` with one key: flags, shift, keys, offset mask and others; the hash mask.
    let selector = [TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // `struct tc_u32_key`: no bit is asked for.
    let key = [0; 16];
    let selector = attribute(TCA_U32_SEL, &[selector, key].concat());
    // `struct tc_mirred`: index, capabilities, action, references, bindings; what; where.
    let parameters = [0, 0, STOLEN, 0, 0, INGRESS_REDIRECT, interface];
    let parameters: Vec<u8> = parameters.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let options = attribute(TCA_MIRRED_PARMS, &parameters);
    let action =
        [attribute(TCA_ACT_KIND, b"mirred\0"), attribute(TCA_ACT_OPTIONS, &options)].concat();
    [selector, attribute(TCA_U32_ACT, &attribute(1, &action))].concat()
}
