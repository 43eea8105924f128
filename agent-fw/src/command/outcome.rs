//! How a command can end.

use std::process::ExitCode;

/// A command ended as it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Done, or true.
    Done,
    /// False: kernel and policy differ, or the user declined.
    False,
}

impl Outcome {
    pub(super) fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::False => ExitCode::from(1),
        }
    }
}

/// A command could not do what it should.
#[derive(Debug)]
pub(super) enum Failure {
    /// The input is wrong: the user can put it right.
    Input(anyhow::Error),
    /// The system failed.
    System(anyhow::Error),
}

impl Failure {
    pub(super) fn error(&self) -> &anyhow::Error {
        match self {
            Self::Input(error) | Self::System(error) => error,
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(2),
            Self::System(_) => ExitCode::from(3),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

pub(super) type Result<T> = std::result::Result<T, Failure>;
