//! The one error type of the crate.
//!
//! Variants are cut by what the caller can do about them, not by where they arose. Messages are lower
//! case, name the thing, and say what was expected and what was found. Only `main` prints the chain.

use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line asks for something that makes no sense: change the command.
    #[error("{0}")]
    Usage(String),
    /// A configuration value is out of range or contradicts another: change the configuration.
    #[error("{0}")]
    Config(String),
    /// The operating system refused a file operation.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// What was attempted, as a verb phrase ("read", "create directory").
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A weights file does not hold what its architecture needs: get another file or name another architecture.
    #[error("{path}: {reason}", path = path.display())]
    Weights {
        /// The weights file.
        path: PathBuf,
        /// The tensor or metadata key, expected and found.
        reason: String,
    },
    /// Something the model store wrote is not what it was: activate another version, or publish it again.
    #[error("{path}: {reason}", path = path.display())]
    Damaged {
        /// The stored file or folder.
        path: PathBuf,
        /// Expected and found.
        reason: String,
    },
    /// Shapes that do not fit together in a graph or a tensor operation.
    #[error("{0}")]
    Shape(String),
    /// Images or labels that cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Data {
        /// The image, folder or archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// NaN or infinity where a finite number is needed.
    #[error("{0}")]
    Numeric(String),
    /// The result was computed and refused: the gate or a baseline said no.
    #[error("{0}")]
    Rejected(String),
    /// A queue is full: try again later.
    #[error("{0}")]
    Overloaded(String),
    /// The user or the system asked to stop; work so far is saved.
    #[error("{0}")]
    Interrupted(String),
    /// The tensor library failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::Weights`] for `path`.
    pub fn weights(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Damaged`] for `path`.
    pub fn damaged(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Data`] for `path`.
    pub fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// The process exit code: 1 when the run finished and its result was refused, 2 for every other error,
    /// 130 after an interruption.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Rejected(_) => 1,
            Self::Interrupted(_) => 130,
            _ => 2,
        }
    }
}
