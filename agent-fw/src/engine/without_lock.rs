//! What is done at boot whoever stands on the lock. Tables alone are changed, and only ones that are
//! as they were when they were looked at: none is there, or the ruleset is still of the generation
//! that was read before. Programs stay as they are: their links and pins have no generation, and a
//! table keeps the port closed beside any of them.

use super::apply::{self, Applied, AtBoot, Read, Substitute};
use super::closing::{closing_table, or_without_counters, ports_to_close};
use super::failure::Result;
use super::host::found_differences;
use super::{last_good, policy};
use crate::model::{Port, TableName};
use crate::nft::{Image, NetlinkError, Nftables, Rest};
use std::time::{Duration, Instant};

/// So long an exchange is tried again that somebody else's change has overtaken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Closes the port, where nothing of agent-fw's is in force, before any file is read that somebody
/// else may have made: by the last good policy, or to every source.
pub fn close_at_once() -> anyhow::Result<Option<Substitute>> {
    if !policy::is_installed() && !last_good::is_kept() {
        return Ok(None);
    }
    let mut nftables = Nftables::open()?;
    if nftables.has_tables()? || !crate::xdp::attachments()?.is_empty() {
        return Ok(None);
    }
    let mut create =
        |tables: &[Image]| or_without_counters(tables, |tables| nftables.create(tables));
    if let Ok(Some((_, compiled))) = last_good::compiled()
        && let Ok(is_made) = create(&compiled.images())
    {
        let hash = compiled.lowered.policy.hash();
        return Ok(is_made.then_some(Substitute::LastGood(hash)));
    }
    let ports = ports_to_close(None);
    Ok(create(&[closing_table(&ports)])?.then_some(Substitute::Closed(ports)))
}

/// Enforces the policy that was read, or what stands in for it, by tables alone.
pub fn at_boot(read: &Read) -> Result<AtBoot> {
    if !policy::is_installed() && !last_good::is_kept() {
        return Ok(AtBoot::NothingInstalled);
    }
    let failure = match apply::wanted(read) {
        Ok((configuration, compiled)) => {
            replace(&compiled.images(), Rest::Goes)?;
            let (missing, notes) = (Vec::new(), Vec::new());
            let applied = Applied { configuration, compiled, missing, notes };
            return Ok(AtBoot::ByTablesAlone(Box::new(applied)));
        }
        Err(failure) => failure,
    };
    let kept = last_good::compiled().ok().flatten();
    if let Some((_, compiled)) = &kept
        && or_without_counters(&compiled.images(), |tables| replace(tables, Rest::Goes)).is_ok()
    {
        let hash = compiled.lowered.policy.hash();
        return Ok(AtBoot::FellBack(failure, Substitute::LastGood(hash)));
    }
    let ports = close(kept.map(|(configuration, _)| Port(configuration.port)))?;
    Ok(AtBoot::FellBack(failure, Substitute::Closed(ports)))
}

/// Closes every port that some record names to every source. What is in force beyond these ports
/// stays.
fn close(known: Option<Port>) -> Result<Vec<Port>> {
    let mut ports = ports_to_close(known);
    let tables = Nftables::open()?.outline()?;
    if tables.iter().any(|live| live.image.name != TableName::Gate) {
        // These say who reaches the relay's port.
        ports.truncate(1);
    }
    or_without_counters(&[closing_table(&ports)], |tables| replace(tables, Rest::Stays))?;
    Ok(ports)
}

/// Puts these tables in the place of those that are there. When it fails, those stay.
fn replace(images: &[Image], rest: Rest) -> std::result::Result<(), NetlinkError> {
    let mut nftables = Nftables::open()?;
    let is_done = |nftables: &mut Nftables| {
        found_differences(nftables, images).is_ok_and(|found| found.is_empty())
    };
    // Whoever has the lock may be about to go on with what is there.
    if is_done(&mut nftables) {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let generation = nftables.generation()?;
        match nftables.replace_at(generation, images, rest) {
            Err(NetlinkError::Overtaken | NetlinkError::KeptChanging)
                if Instant::now() < deadline => {}
            // Where nothing is there, nothing that changes meanwhile matters.
            Err(NetlinkError::Overtaken | NetlinkError::KeptChanging)
                if nftables.create(images)? =>
            {
                return Ok(());
            }
            // The kernel may have done it, though its answer was lost: it is asked.
            Err(error) if error.is_uncertain() && is_done(&mut nftables) => return Ok(()),
            replaced => return replaced,
        }
    }
}
