//! How a command can end.

pub(super) use crate::engine::failure::{Failure, Result};

use super::consent::Refused;
use crate::engine::apply::OpensMore;
use crate::engine::shrunk::Shrunk;
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

/// The exit code of a command that could not do what it should.
pub(super) fn failed(failure: &Failure) -> ExitCode {
    let error = failure.error();
    if error.is::<OpensMore>() || error.is::<Shrunk>() || error.is::<Refused>() {
        return ExitCode::from(1);
    }
    match failure {
        Failure::Input(_) => ExitCode::from(2),
        Failure::System(_) => ExitCode::from(3),
    }
}
