//! A running server, as those see it who only look.

use std::sync::Arc;

use petals_protocol::{ServerInfo, ServerState};
use petals_swarm::SwarmHandle;

use crate::executor::ExecutorHandle;
use crate::placement::figures::put_load;
use crate::placement::hosted::Hosted;

/// What may be looked at. It keeps no server from ending.
#[derive(Debug, Clone)]
pub(crate) struct ServerView {
    pub(super) swarm: SwarmHandle,
    pub(super) hosted: Arc<Hosted>,
    pub(super) executor: ExecutorHandle,
}

impl ServerView {
    /// What it would announce at this moment.
    pub(crate) fn info(&self) -> ServerInfo {
        let mut info = self.hosted.info();
        put_load(&mut info, &self.executor);
        info
    }

    /// Why it takes no requests, if it does not.
    ///
    /// # Errors
    /// In words for a person.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.hosted.info().state {
            ServerState::Online => Ok(()),
            ServerState::Joining => Err("the blocks are being loaded".to_owned()),
            _ => Err("the server is leaving: it finishes what runs and takes nothing new".to_owned()),
        }
    }

    /// What it did and computes with.
    pub(crate) fn executor(&self) -> &ExecutorHandle {
        &self.executor
    }
}
