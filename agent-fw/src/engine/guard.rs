//! The guard: keeps what the kernel enforces as the policy asks for, and others from changing it.

use super::apply::{self, AtBoot, Read};
use super::failure::Result;
use super::kernel_state::KernelState;
use super::{policy, without_lock};
use crate::netlink::monitor::{Change, Changes};
use crate::nft::{Cover, HeldTables, Nftables};
use crate::system::guard_socket::{GuardSocket, TableLease};
use crate::system::lock;
use crate::system::lock::Busy;
use crate::xdp::{self, Attachment};
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// Its changes of the table are told from others' by this name.
const NAME: &CStr = c"agent-fw-guard";
/// How often a lock that another agent-fw holds is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How often the programs on interfaces are looked at, and whether the frames that they take for this
/// host's still are: the kernel does not announce that a link is detached or a pin removed, nor every
/// change of addresses and rules.
const LOOK: Duration = Duration::from_secs(2);
/// So long a command may change the tables. One that has been stopped does not keep the guard away
/// for longer.
const LEASE: Duration = Duration::from_mins(1);

/// Something that whoever runs the guard is told.
#[derive(Debug)]
pub enum Event {
    /// It stands.
    Standing(HeldTables),
    /// What differed was put back, and why it had been looked at.
    PutBack {
        /// What made it look.
        cause: String,
        /// What differed.
        differing: Vec<String>,
    },
    /// The policy was enforced, or what stands in for it.
    Enforced(AtBoot),
    /// While others are at work, this much holds.
    Covered(Cover),
    /// Something failed. The next change is met again.
    Failed(anyhow::Error),
}

/// Guards until something fails that cannot be tried again. `awake` is called at least every
/// `interval`.
pub fn run(
    interval: Option<Duration>,
    mut awake: impl FnMut(),
    say: impl FnMut(Event),
) -> Result<()> {
    nix::sys::prctl::set_name(NAME)?;
    let mut changes = Changes::listen()?;
    let door = GuardSocket::open()?;
    let mut keeper = Keeper::new(say);
    keeper.due = Some("at the start".to_owned());
    while keeper.put_back()? == Done::Busy {
        std::thread::sleep(RETRY);
    }
    let hold = keeper.hold();
    (keeper.say)(Event::Standing(hold));
    loop {
        let timeouts = [interval, keeper.timeout()];
        for change in changes.wait(timeouts.into_iter().flatten().min(), &door)? {
            keeper.meet(&change);
        }
        if let Some(mut guest) = door.guest() {
            keeper.hand_over(&mut guest, interval, &mut awake);
            keeper.try_put_back();
        }
        keeper.look_at_programs();
        keeper.try_put_back();
        awake();
    }
}

/// Whether the kernel was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Yes,
    /// Another agent-fw has the lock.
    Busy,
}

/// Keeps what the kernel enforces as the policy asks for.
struct Keeper<S> {
    /// The connection that owns something, where the kernel has that.
    owner: Option<(Nftables, HeldTables)>,
    /// Whether the owned twin may be that of another policy: a command was at work.
    is_twin_outdated: bool,
    /// The connection that has a twin of the gate while the tables are anybody's.
    cover: Option<Nftables>,
    /// Why the kernel is to be compared with the policy.
    due: Option<String>,
    /// The programs when they were compared last, and when that was; where there were some.
    programs: Option<(Vec<Attachment>, Instant)>,
    say: S,
}

impl<S: FnMut(Event)> Keeper<S> {
    fn new(say: S) -> Self {
        Self { owner: None, is_twin_outdated: false, cover: None, due: None, programs: None, say }
    }

    fn hold(&self) -> HeldTables {
        self.owner.as_ref().map_or(HeldTables::Nothing, |(_, hold)| *hold)
    }

    /// When it has to look again by itself.
    fn timeout(&self) -> Option<Duration> {
        if self.due.is_some() {
            return Some(RETRY);
        }
        let looked = self.programs.as_ref().map(|(_, looked)| *looked);
        looked.map(|looked| LOOK.saturating_sub(looked.elapsed()))
    }

    /// Lets the tables be changed. A twin stays, and keeps the port closed meanwhile.
    fn let_go_of_tables(&mut self) {
        self.owner.take_if(|(_, hold)| *hold == HeldTables::Tables);
    }

    fn meet(&mut self, change: &Change) {
        self.due = Some(match change {
            Change::Table(by) if by.name.as_bytes() == NAME.to_bytes() => return,
            Change::Table(by) => format!("{by} changed the table"),
            Change::Links => "an interface changed".to_owned(),
            Change::Unknown => "more changes than could be heard of".to_owned(),
        });
    }

    /// Compares the programs with those of last time.
    fn look_at_programs(&mut self) {
        let Some((before, looked)) = &mut self.programs else { return };
        if looked.elapsed() < LOOK {
            return;
        }
        *looked = Instant::now();
        if xdp::attachments().is_ok_and(|now| now != *before) {
            self.due = Some("an XDP program changed".to_owned());
        }
    }

    /// Lets a command change the tables, behind a twin of the gate.
    fn hand_over(
        &mut self,
        guest: &mut TableLease,
        interval: Option<Duration>,
        awake: &mut impl FnMut(),
    ) {
        if self.hold() == HeldTables::Tables {
            match Nftables::open().and_then(|mut nftables| Ok((nftables.cover()?, nftables))) {
                Ok((Cover::Whole, nftables)) => self.cover = Some(nftables),
                Ok((cover, nftables)) => {
                    self.cover = Some(nftables);
                    (self.say)(Event::Covered(cover));
                }
                Err(error) => (self.say)(Event::Failed(error.into())),
            }
            self.let_go_of_tables();
        }
        self.is_twin_outdated = self.hold() == HeldTables::Twin;
        if let Err(error) = guest.serve(LEASE, interval, awake) {
            let error = anyhow::Error::from(error).context("a command that changes the tables");
            (self.say)(Event::Failed(error));
        }
        self.due = Some("after a command of agent-fw's".to_owned());
    }

    /// A repair that fails is not the end: the next change is met again.
    fn try_put_back(&mut self) {
        if let Err(failure) = self.put_back() {
            self.due = None;
            (self.say)(Event::Failed(failure.into_error()));
        }
    }

    /// Compares the kernel with the policy, where that is due, enforces it where they differ, and
    /// owns the tables.
    fn put_back(&mut self) -> Result<Done> {
        let Some(cause) = self.due.clone() else { return Ok(Done::Yes) };
        // Files may keep us waiting, and whoever has the lock may not be about the table at all.
        match without_lock::close_at_once() {
            Ok(None) => {}
            Ok(Some(substitute)) => {
                let differing = vec![format!("nothing was there; now {substitute}")];
                (self.say)(Event::PutBack { cause: cause.clone(), differing });
            }
            Err(error) => (self.say)(Event::Failed(error)),
        }
        let read = Read::now();
        let _lock = match lock::acquire("guard", Duration::ZERO) {
            Err(error) if error.is::<Busy>() => return Ok(Done::Busy),
            lock => lock?,
        };
        self.due = None;
        if !policy::is_installed() {
            // Uninstalled: there is nothing to guard.
            (self.owner, self.cover, self.programs) = (None, None, None);
            return Ok(Done::Yes);
        }
        if read.is_outdated() {
            self.due = Some(cause);
            return Ok(Done::Busy);
        }
        let differing = match apply::wanted(&read) {
            Ok((configuration, compiled)) => {
                let state = KernelState::read(&mut Nftables::open()?)?;
                Some(state.differences(&configuration, &compiled)?)
            }
            Err(_) => None,
        };
        if differing.as_ref().is_none_or(|differing| !differing.is_empty()) {
            self.let_go_of_tables();
            let done = apply::at_boot(&read)?;
            if let Some(differing) = differing {
                (self.say)(Event::PutBack { cause, differing });
            }
            (self.say)(Event::Enforced(done));
            self.own_anew()?;
        } else if self.owner.is_none() || self.is_twin_outdated {
            self.own_anew()?;
        }
        if self.owner.is_none() && self.cover.is_some() {
            // The table has gone again before it could be owned: the twin stays until it is.
            self.due = Some("the table was taken away again".to_owned());
            return Ok(Done::Busy);
        }
        self.cover = None;
        let programs = xdp::attachments()?;
        self.programs = (!programs.is_empty()).then(|| (programs, Instant::now()));
        Ok(Done::Yes)
    }

    /// Owns what is in force now.
    fn own_anew(&mut self) -> Result<()> {
        // A twin is exchanged by the connection that has it: at no moment is there none.
        let mut nftables = match self.owner.take() {
            Some((nftables, HeldTables::Twin)) => nftables,
            _ => Nftables::open()?,
        };
        let hold = nftables.own()?;
        self.is_twin_outdated = false;
        self.owner = match hold {
            HeldTables::Nothing => None,
            hold => Some((nftables, hold)),
        };
        Ok(())
    }
}
