//! Why a model cannot be had by its name, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use petals_model::CheckpointError;

use crate::settings::SettingsError;

/// Why files of the hub cannot be had. Messages end with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The environment cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The hub wants to know who asks, or does not know it.
    #[error("{repository}: the hub answers 401, {}: {}", reason(said), ask(token.as_deref(), page))]
    Unauthorized {
        /// `org/name`.
        repository: String,
        /// Its page.
        page: String,
        /// Where the token came from that was sent.
        token: Option<String>,
        /// What the hub says.
        said: Option<String>,
    },
    /// The repository is gated, and this account was not let in.
    #[error("{repository} may not be downloaded, the hub answers 403, {}: {}", reason(said), accept(token.as_deref(), page))]
    Forbidden {
        /// `org/name`.
        repository: String,
        /// Its page.
        page: String,
        /// Where the token came from that was sent.
        token: Option<String>,
        /// What the hub says.
        said: Option<String>,
    },
    /// There is no such repository.
    #[error(
        "there is no model {repository} at {endpoint}, and no directory of that name here: see how it is spelt, and if it is private set HF_TOKEN"
    )]
    NoRepository {
        /// `org/name`.
        repository: String,
        /// The hub.
        endpoint: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "{repository} has no revision `{revision}`: give a branch, a tag or a whole commit behind @, see {page}/commits/main"
    )]
    NoRevision {
        /// `org/name`.
        repository: String,
        /// What was asked for.
        revision: String,
        /// Its page.
        page: String,
    },
    /// The repository has no such file.
    #[error("{name} has no file `{file}`: see {page}/tree/main, or choose another revision")]
    NoFile {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// Its page.
        page: String,
    },
    /// The repository has no weights that are read.
    #[error("{name} {found}: {remedy}")]
    NoWeights {
        /// The model.
        name: String,
        /// What there is in their place.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// An answer that does not make sense, which no waiting mends.
    #[error(
        "{url} answers {status}{}: see that HF_ENDPOINT is a hub, and that nothing in between answers for it",
        detail(said)
    )]
    Refused {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What it says.
        said: Option<String>,
    },
    /// The hub asks for less, again and again.
    #[error(
        "{url} answers 429, too many requests, and asks to wait for {} s: try again later{}", wait.as_secs(),
        if *anonymous { ", or set HF_TOKEN, since the hub lets accounts ask more often" } else { "" }
    )]
    RateLimited {
        /// What was asked.
        url: String,
        /// How long it asks to wait.
        wait: Duration,
        /// Whether nobody said who asks.
        anonymous: bool,
    },
    /// The hub has a fault of its own.
    #[error("{url} answers {status}{}, {}: try again later", detail(said), after(*attempts))]
    Server {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What it says.
        said: Option<String>,
        /// How often it was asked.
        attempts: u32,
    },
    /// There is no connection, or it is lost again and again.
    #[error(
        "{url} cannot be read, {}: {reason}: see the network, HF_ENDPOINT and HTTPS_PROXY, then start again, what has come is kept",
        after(*attempts)
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong last.
        reason: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// The hub says something that cannot be.
    #[error("{url} says {what}: see that HF_ENDPOINT is a hub")]
    Nonsense {
        /// What was asked.
        url: String,
        /// What it says.
        what: String,
    },
    /// A file is not what the hub says it is, twice.
    #[error(
        "{file} of {name} came twice with other bytes than the hub has ({what}): something on the way changes it; try another network"
    )]
    Corrupt {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// What differs.
        what: String,
    },
    /// Nothing may be asked, and something is missing.
    #[error(
        "{name}: {missing} {} not in the cache {}, and HF_HUB_OFFLINE is set: unset it once to fetch what is missing, or copy the model there",
        if *several { "are" } else { "is" }, cache.display()
    )]
    Offline {
        /// The model.
        name: String,
        /// What is missing.
        missing: String,
        /// Whether that is more than one thing.
        several: bool,
        /// The cache.
        cache: PathBuf,
    },
    /// The cache may not become as large as it would have to be.
    #[error(
        "{name} needs {needed} bytes more, and --max-disk lets the models in {} have {most}, of which {used} are in use: give a larger --max-disk, \
         serve fewer blocks, or set HF_HUB_CACHE to another folder", cache.display()
    )]
    TooLarge {
        /// The model.
        name: String,
        /// What has to come.
        needed: u64,
        /// What `--max-disk` says.
        most: u64,
        /// What cannot go.
        used: u64,
        /// The cache.
        cache: PathBuf,
    },
    /// The disk is full.
    #[error(
        "the disk of {} is full, {left} bytes of {file} are still to come: free some space and start again, what has come is kept; or set \
         HF_HUB_CACHE to a folder on another disk, or --max-disk to have old models removed", path.display()
    )]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// The file.
        file: String,
        /// Bytes that are missing.
        left: u64,
    },
    /// Something in the cache cannot be read or written.
    #[error("cannot {what} {}: {source}: see that the cache is yours, or set HF_HUB_CACHE to another folder", path.display())]
    Cache {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another file of the same request failed, which is said in its place.
    #[error("the download was given up")]
    GivenUp,
}

/// Why a model that was given by its directory or its name cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The hub does not give it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Its files are none of a model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl SourceError {
    /// Whether what was given is wrong, and not the way to it.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Hub(error) => error.is_input(),
            Self::Checkpoint(_) => true,
        }
    }
}

impl HubError {
    /// Whether the person who asks can do something about it: what was asked for is wrong, or may not be had by them.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Settings(_)
                | Self::Unauthorized { .. }
                | Self::Forbidden { .. }
                | Self::NoRepository { .. }
                | Self::NoRevision { .. }
                | Self::NoFile { .. }
                | Self::NoWeights { .. }
                | Self::Offline { .. }
                | Self::TooLarge { .. }
        )
    }

    /// Whether the hub could not be asked, so that what the cache has may do.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Server { .. } | Self::RateLimited { .. })
    }

    /// What went wrong, for somebody who need not do anything about it.
    pub(crate) fn passing_reason(&self) -> String {
        match self {
            Self::Unreachable { reason, .. } => format!("the connection failed: {reason}"),
            Self::Server { status, .. } => format!("the other side answers {status}"),
            Self::RateLimited { .. } => "the hub answers 429, too many requests".to_owned(),
            other => other.to_string(),
        }
    }

    /// A failure to do something in the cache.
    pub(crate) fn cache(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Cache { what, path, source }
    }
}

fn reason(said: &Option<String>) -> &str {
    said.as_deref().unwrap_or("without a reason")
}

fn after(attempts: u32) -> String {
    if attempts == 1 { "at the first attempt".to_owned() } else { format!("after {attempts} attempts") }
}

fn detail(said: &Option<String>) -> String {
    said.as_ref().map_or_else(String::new, |said| format!(" ({said})"))
}

fn ask(token: Option<&str>, page: &str) -> String {
    match token {
        Some(source) => format!(
            "the token in {source} is not taken, or its account may not see {page}: make a new one with the right to read it"
        ),
        None => format!(
            "see how it is spelt; if it is private or gated, ask for access on {page} and set HF_TOKEN to a token of your account, or run \
             `hf auth login`"
        ),
    }
}

fn accept(token: Option<&str>, page: &str) -> String {
    match token {
        Some(source) => format!(
            "accept its conditions on {page} with the account whose token is in {source}, and see that the token may read gated models"
        ),
        None => format!(
            "accept its conditions on {page}, and set HF_TOKEN to a token of that account, or run `hf auth login`"
        ),
    }
}
