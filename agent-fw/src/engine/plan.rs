//! What is to be in force, from what is wanted and the interfaces that are there.

use super::enforce::Plan;
use super::host::ProgramSpec;
use super::interfaces::{self, Found};
use crate::configuration::{Compiled, Configuration};
use crate::input::options::Backend;
use crate::netlink::surroundings::Surroundings;
use crate::xdp::{self, Objection};
use anyhow::bail;

/// What becomes of a policy of which an interface is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It is refused.
    Refused,
    /// The table holds until the interface comes. So it is at boot, and with the guard.
    TableStandsIn,
}

/// The plan of a policy. `found`: its interfaces, where it has programs.
pub fn plan<'a>(
    configuration: &Configuration,
    compiled: &'a Compiled,
    found: &Found,
    missing: Missing,
) -> anyhow::Result<Plan<'a>> {
    let backend = configuration.backend;
    if !backend.has_programs() {
        return Ok(Plan { tables: compiled.images(), ..Plan::default() });
    }
    if !found.missing.is_empty() && missing == Missing::Refused {
        bail!(missing_interfaces(&found.missing));
    }
    let interfaces = found.interfaces();
    if interfaces.is_empty() && configuration.interfaces.is_empty() {
        bail!("no physical interface is up; name one with --interface");
    }
    let stands_in = !found.missing.is_empty();
    let tables = if backend.has_table() || stands_in { compiled.images() } else { Vec::new() };
    let programs = ProgramSpec {
        lowered: &compiled.lowered,
        gate: backend.has_table(),
        interfaces,
        mode: configuration.xdp_mode,
    };
    let meanwhile = compiled.images();
    // A program on no interface is none.
    let programs = (!programs.interfaces.is_empty()).then_some(programs);
    Ok(Plan { tables, meanwhile, programs, ..Plan::default() })
}

/// The interfaces that a configuration asks for; none where it has no programs.
pub fn interfaces_of(configuration: &Configuration) -> anyhow::Result<Found> {
    if configuration.backend.has_programs() {
        interfaces::find(&configuration.interfaces)
    } else {
        Ok(Found::default())
    }
}

/// Whom programs would cut off that stand alone on the interfaces of a configuration; nobody, where
/// it has a table besides.
pub fn objections_of(
    configuration: &Configuration,
    found: &Found,
) -> anyhow::Result<Vec<Objection>> {
    if configuration.backend != Backend::Xdp {
        return Ok(Vec::new());
    }
    let seen = Surroundings::read()?;
    let interfaces = found.interfaces();
    Ok(interfaces.iter().flat_map(|interface| xdp::objections(interface, &seen)).collect())
}

/// That interfaces are missing, in words.
pub fn missing_interfaces(names: &[String]) -> String {
    format!("there is no interface {}", names.join(", "))
}
