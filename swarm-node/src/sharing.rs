//! Files of a model from the hub, passed on between its servers (`--share-weights`).
//!
//! | file | subject |
//! |---|---|
//! | `giver`, `pace`, `places` | answers others who ask, within bounds |
//! | `taker`, `source` | asks others before the hub is asked, and takes what they send |
//! | `trust` | who is asked, who first, and who no more |
//!
//! What is taken is held against the hub's hashes by `petals_hub`, like everything that it fetches; what is given was. Contents are named by their hashes alone,
//! so nobody can ask for anything but files of this model's revision.

use std::sync::Arc;

use petals_hub::{ModelSource, Nearby};
use petals_protocol::{ModelId, Span};
use petals_swarm::SwarmHandle;

mod giver;
mod pace;
mod places;
mod source;
mod taker;
mod trust;

use giver::Giver;
pub(crate) use pace::LEAST_RATE;
use pace::Pace;
use taker::Taker;

/// A server's part in passing files on.
#[derive(Debug)]
pub(crate) struct Sharing {
    taker: Taker,
    rate: Option<u64>,
}

/// Why there is nothing to pass on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NothingToShare {
    #[error(
        "--share-weights passes on what comes from the hub, and {0} is here already: give the model by its name there, such as org/name, or leave \
         --share-weights out"
    )]
    Local(String),
    #[error(
        "--share-weights cannot be used with {0}: a GGUF comes as a whole, before anything is known of the model, and so of its servers; leave it out"
    )]
    Gguf(String),
}

impl Sharing {
    /// A server that sends at most so many bytes a second to others. Before [`Self::begin`] nobody is asked.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { taker: Taker::default(), rate }
    }

    /// Who is asked before the hub.
    pub(crate) fn nearby(&self) -> Arc<dyn Nearby> {
        Arc::new(self.taker.clone())
    }

    /// Refuses a model of which nothing can be passed on.
    pub(crate) fn check(source: &ModelSource) -> Result<(), NothingToShare> {
        match source.snapshot() {
            None => Err(NothingToShare::Local(source.path().display().to_string())),
            Some(snapshot) if snapshot.name().file().is_some() => {
                Err(NothingToShare::Gguf(snapshot.name().to_string()))
            }
            Some(_) => Ok(()),
        }
    }

    /// From here on others are asked, and answered until the node ends. Must be called within a tokio runtime.
    pub(crate) fn begin(&self, swarm: &SwarmHandle, source: &ModelSource, model: &ModelId, blocks: Span) {
        self.taker.begin(swarm.clone(), model.clone(), blocks);
        if let Some(incoming) = swarm.take_content_streams() {
            let giver = Giver::new(Arc::new(source.clone()), Pace::new(self.rate));
            tokio::spawn(Arc::new(giver).run(incoming));
        }
    }
}
