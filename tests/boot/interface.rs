//! The network card: taken out and put in again, and by another name.

use crate::host::Host;
use crate::neighbour::{MACHINE_MAC_TEXT, Neighbour};
use anyhow::{Context, Result, ensure};

/// What udev names the card by when it comes.
const LINK: &str = "/etc/systemd/network/10-card.link";

/// The network card is taken out and put in again: its XDP program comes back by itself, and until
/// then the table holds. The policy, for eth0, has both.
pub(crate) fn goes_and_comes(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    let unlisted = neighbour.unlisted_so_far();
    host.is_closed(neighbour, unlisted).context("with an XDP program")?;
    comes_back(host, "eth0", "eth0")?;
    host.is_closed(neighbour, unlisted).context("after the interface's return")?;
    has_its_program(host, "eth0")?;
    host.is_closed(neighbour, unlisted).context("with the program on the new interface")
}

/// It gets another name, while it is there and when it comes back. The policy goes on calling it eth0.
pub(crate) fn gets_another_name(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    let unlisted = neighbour.unlisted_so_far();
    rename(host, "eth0", "lan0")?;
    has_its_program(host, "lan0").context("renamed")?;
    host.is_closed(neighbour, unlisted).context("renamed")?;
    let link = format!("[Match]\nMACAddress={MACHINE_MAC_TEXT}\n[Link]\nName=lan1\n");
    // By itself, udev looks for new files three seconds after it last did.
    host.script(&format!("printf '{link}' > {LINK}; udevadm control --reload"))?;
    comes_back(host, "lan0", "lan1")?;
    has_its_program(host, "lan1").context("come back by another name")?;
    host.is_closed(neighbour, unlisted).context("come back by another name")?;
    host.script(&format!("rm {LINK}; udevadm control --reload"))?;
    rename(host, "lan1", "eth0")?;
    has_its_program(host, "eth0").context("by its own name again")?;
    host.is_closed(neighbour, unlisted).context("by its own name again")
}

/// With programs alone, the card is taken out and put in again: from then on until its program is back,
/// the table stands in.
pub(crate) fn goes_and_comes_alone(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    let unlisted = neighbour.unlisted_so_far();
    host.script("! nft list table inet agent_fw").context("a table beside the program")?;
    host.is_closed(neighbour, unlisted).context("with a program alone")?;
    let bind = take_out(host, "eth0")?;
    host.run_until_true(&["nft", "list", "table", "inet", "agent_fw"])
        .context("nothing stands in")?;
    put_in(host, &bind, "eth0")?;
    has_its_program(host, "eth0").context("come back alone")?;
    host.run_until_true(&["sh", "-c", "! nft list table inet agent_fw"])
        .context("the table still stands in")?;
    host.is_closed(neighbour, unlisted).context("come back alone")?;
    // By a name that the policy does not have, it is known by its index.
    rename(host, "eth0", "lan0")?;
    has_its_program(host, "lan0").context("renamed alone")?;
    let bind = take_out(host, "lan0")?;
    host.run_until_true(&["nft", "list", "table", "inet", "agent_fw"])
        .context("nothing stands in for the renamed one")?;
    put_in(host, &bind, "eth0")?;
    has_its_program(host, "eth0").context("come back alone by its old name")?;
    host.is_closed(neighbour, unlisted).context("come back alone by its old name")
}

fn rename(host: &mut Host, from: &str, to: &str) -> Result<()> {
    host.script(&format!(
        "ip link set {from} down; ip link set {from} name {to}; ip link set {to} up"
    ))?;
    Ok(())
}

/// The card's driver lets go of it and takes it again; then it has this name.
fn comes_back(host: &mut Host, from: &str, to: &str) -> Result<()> {
    let bind = take_out(host, from)?;
    put_in(host, &bind, to)
}

/// The card's driver lets go of it; what has it take it again.
fn take_out(host: &mut Host, name: &str) -> Result<String> {
    let device = host.run(&["readlink", &format!("/sys/class/net/{name}/device")])?;
    let device = device.trim().rsplit('/').next().unwrap_or_default();
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    host.script(&format!("echo {device} > {driver}/unbind; ! test -e /sys/class/net/{name}"))?;
    Ok(format!("echo {device} > {driver}/bind"))
}

fn put_in(host: &mut Host, bind: &str, name: &str) -> Result<()> {
    host.script(bind)?;
    host.run_until_true(&["test", "-e", &format!("/sys/class/net/{name}")])
}

/// Waits until the policy is in force, and demands that the program is there.
fn has_its_program(host: &mut Host, name: &str) -> Result<()> {
    host.run_until_true(&["agent-fw", "verify"])?;
    let shown = host.run(&["ip", "-details", "link", "show", name])?;
    ensure!(shown.contains("prog/xdp"), "{name} has no program: {shown}");
    Ok(())
}
