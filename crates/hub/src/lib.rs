//! Models by their names on Hugging Face's hub: `org/name`, a revision behind `@`.
//!
//! [`ModelSource::find`] turns what `--model` was given into a directory: one that is there stays as it is, and a name becomes a snapshot in the
//! hub's own cache, which Python's `huggingface_hub` shares. Only the files that are asked for are fetched: a server's are those of its blocks, brought by
//! [`petals_model::Checkpoint`] when it loads them, a client's those of embeddings, norm and head.
//!
//! Others who are nearer than the hub may be asked for large files first ([`Nearby`]), and may have those that are here ([`Snapshot::shared_content`]).
//!
//! Everything blocks; whoever is async calls it on a thread that may wait. Nothing that the hub says is believed: names of files stay in their snapshot,
//! sizes and hashes are checked, and the token goes to the hub itself and to nobody that it sends us to.

mod cache;
mod checked;
mod disk;
mod download;
mod error;
mod http;
mod listing;
mod model;
mod nearby;
mod progress;
mod reference;
mod settings;
mod snapshot;

pub use error::{HubError, SourceError};
pub use model::ModelSource;
pub use nearby::{Found, Nearby, Wanted};
pub use progress::{Meter, Progress};
pub use reference::ModelName;
pub use settings::{Patience, Settings, SettingsError, Token};
pub use snapshot::{Hub, SharedContent, Snapshot};
