//! Why something could not be done: by whose fault.

/// Something could not be done.
#[derive(Debug)]
pub enum Failure {
    /// The input is wrong: the user can put it right.
    Input(anyhow::Error),
    /// The system failed.
    System(anyhow::Error),
}

impl Failure {
    /// What went wrong.
    pub fn error(&self) -> &anyhow::Error {
        match self {
            Self::Input(error) | Self::System(error) => error,
        }
    }

    /// The same, by itself.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Input(error) | Self::System(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

/// What was done, or why it could not be.
pub type Result<T> = std::result::Result<T, Failure>;
