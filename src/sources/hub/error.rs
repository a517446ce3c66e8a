//! Why a model of the hub cannot be had.

use std::io;
use std::path::PathBuf;

use crate::util::hint::Hint;

/// What is wrong with which name, answer or file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not a name.
    #[error("{name:?} is not the name of a model on the hub: {problem}")]
    Name {
        /// As it was given.
        name: String,
        /// Why.
        problem: &'static str,
    },
    /// The hub cannot be asked, and the cache does not have it.
    #[error("{repo} is not in the cache, and {endpoint} cannot be reached: {problem}")]
    Unreachable {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Why.
        problem: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache does not have it.
    #[error("{repo} is not in the cache, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The repository.
        repo: String,
    },
    /// The hub does not let this user in.
    #[error("the hub refuses {what} to {whom} (status {status})")]
    Denied {
        /// The repository or file.
        what: String,
        /// With or without a token.
        whom: &'static str,
        /// 401 or 403.
        status: u16,
    },
    /// The hub does not have it.
    #[error("the hub has no {what} (status 404)")]
    Missing {
        /// The repository or file.
        what: String,
    },
    /// The hub answered otherwise.
    #[error("the hub answered {what} with status {status}")]
    Status {
        /// The repository or file.
        what: String,
        /// Its status.
        status: u16,
    },
    /// The hub's answer makes no sense.
    #[error("the hub's answer for {what} cannot be used: {problem}")]
    Answer {
        /// The repository or file.
        what: String,
        /// Why.
        problem: String,
    },
    /// No GGUF file in the repository.
    #[error("{repo} has no GGUF model file")]
    NoGguf {
        /// The repository.
        repo: String,
    },
    /// None that was asked for.
    #[error("{repo} has no GGUF file of {wanted}")]
    NoMatch {
        /// The repository.
        repo: String,
        /// The quantization or file.
        wanted: String,
        /// Those that are there.
        there: Vec<String>,
    },
    /// More than one.
    #[error("{repo} has {} GGUF files {of}", there.len())]
    Several {
        /// The repository.
        repo: String,
        /// Of what.
        of: String,
        /// Which.
        there: Vec<String>,
    },
    /// A split model lacks files.
    #[error("{repo} lacks {missing}, a file of the split model")]
    NoPart {
        /// The repository.
        repo: String,
        /// One that is missing.
        missing: String,
    },
    /// The download broke off.
    #[error("{file} could not be downloaded: {problem}")]
    Download {
        /// The file.
        file: String,
        /// Why.
        problem: String,
    },
    /// Another program is downloading it.
    #[error("{file} is being downloaded by another program")]
    Busy {
        /// The file.
        file: String,
    },
    /// What was downloaded is not what the hub has.
    #[error("{file} was damaged in transit (expected {expected}, found {found}) and removed from the cache")]
    Damaged {
        /// The file.
        file: String,
        /// Its size or sha256.
        expected: String,
        /// That of what arrived.
        found: String,
    },
    /// The cache cannot be written to.
    #[error("{}: {source}", path.display())]
    Cache {
        /// The cache.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no place for a cache.
    #[error(
        "there is no place for the hub's cache: neither HF_HOME, XDG_CACHE_HOME nor a home folder is set"
    )]
    NoHome,
    /// The user asked to stop.
    #[error("stopped: {file} goes on from where it is when it is asked for again")]
    Stopped {
        /// The file.
        file: String,
    },
}

impl Hint for HubError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some("names look as for llama.cpp's -hf: OWNER/REPO or OWNER/REPO:Q4_K_M".into()),
            Self::Unreachable { .. } => {
                Some("check the network, and HF_ENDPOINT if a mirror is used; a file on this machine can be given by its path".into())
            }
            Self::Denied { .. } => Some(
                "set HF_TOKEN to a token that may read it (`hf auth login` stores one); gated models must be asked for on \
                 their page first"
                    .into(),
            ),
            Self::Missing { .. } => {
                Some("check the spelling; a private repository looks like this too, unless HF_TOKEN is set".into())
            }
            Self::NoGguf { .. } => Some("look for a repository with GGUF files of the model, often named …-GGUF".into()),
            Self::NoMatch { there, .. } | Self::Several { there, .. } => {
                Some(format!("choose one, as OWNER/REPO:FILE.gguf; there are: {}", there.join(", ")))
            }
            Self::Download { .. } => Some("the same command goes on from where it stopped".into()),
            Self::Cache { source, .. } if is_full(source) => {
                Some("make room, or set HF_HOME to a folder on a larger disk; the same command goes on from where it stopped".into())
            }
            Self::NoHome => Some("set HF_HOME to a folder for the hub's cache".into()),
            Self::Damaged { .. } => Some("try again".into()),
            Self::Offline { .. } => Some("unset HF_HUB_OFFLINE to download it".into()),
            Self::Status { .. }
            | Self::Answer { .. }
            | Self::NoPart { .. }
            | Self::Busy { .. }
            | Self::Cache { .. }
            | Self::Stopped { .. } => None,
        }
    }
}

/// Whether the disk, or the user's share of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
