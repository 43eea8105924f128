//! How a command can end.

pub(super) use crate::engine::failure::{Failure, Result};

use super::consent::Refused;
use crate::engine::apply::OpensMore;
use crate::engine::shrunk::Shrunk;
use serde_json::{Value, json};
use std::process::ExitCode;

/// A command ended as it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Done, or true.
    Done,
    /// False: kernel and policy differ, or the user declined.
    False,
    /// Not known: rules of this host would have remembered the question.
    NotAsked,
}

impl Outcome {
    pub(super) fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::False => ExitCode::from(1),
            Self::NotAsked => ExitCode::from(5),
        }
    }
}

/// Why a command could not do what it should, for programs.
pub(super) fn failure_to_json(failure: &Failure) -> Value {
    let error = failure.error();
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let kind = match failure {
        _ if is_refusal(error) => "refused",
        Failure::Input(_) => "input",
        Failure::System(_) => "system",
    };
    let command = error.downcast_ref::<Refused>().map(|refused| &refused.command);
    json!({ "error": {
        "kind": kind, "message": error.to_string(), "causes": causes, "command": command,
    } })
}

/// Whether it was refused, for want of somebody's consent.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.is::<OpensMore>() || error.is::<Shrunk>() || error.is::<Refused>()
}

/// The exit code of a command that could not do what it should.
pub(super) fn failed(failure: &Failure) -> ExitCode {
    if is_refusal(failure.error()) {
        return ExitCode::from(1);
    }
    match failure {
        Failure::Input(_) => ExitCode::from(2),
        Failure::System(_) => ExitCode::from(3),
    }
}
