//! Which models a swarm serves, for whoever knows none of them.
//!
//! The hash table is asked for blocks of a model that is known. So every member answers the question for one certain key with the models of which
//! it keeps records itself, as for the time (`clock.rs`). Each record lies on a dozen members and who asks reaches a score of them, so that the
//! union of their answers has what several servers announce even in a large swarm. An answer is a claim: what is shown of a model are the signed
//! records that a lookup finds.

use std::collections::BTreeMap;

use petals_protocol::ModelId;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout_at};

use crate::node::{DirectoryQuery, SwarmHandle};
use crate::told_models::read_models;

/// Models that are collected from all answers.
const MOST_SEEN: usize = 256;
/// Answers waiting to be looked at.
const ANSWERS: usize = 64;
/// How long the others are waited for once one has answered.
const SETTLE: Duration = Duration::from_secs(1);

impl SwarmHandle {
    /// The models that members of the swarm have records of, each with the number of its blocks as far as it is known: the end of the last one
    /// that is served, at least.
    pub async fn models(&self) -> Vec<(ModelId, u32)> {
        let (found, mut answers) = mpsc::channel(ANSWERS);
        if !self.query(DirectoryQuery::Models { found }).await {
            return Vec::new();
        }
        let mut models = BTreeMap::new();
        let mut until = Instant::now() + self.lookup_timeout();
        while let Ok(Some(Some(answer))) = timeout_at(until, answers.recv()).await {
            until = until.min(Instant::now() + SETTLE);
            for (model, blocks) in read_models(&answer) {
                let has_room = models.len() < MOST_SEEN;
                match models.get_mut(&model) {
                    Some(known) => *known = blocks.max(*known),
                    None if has_room => drop(models.insert(model, blocks)),
                    None => {}
                }
            }
        }
        models.into_iter().collect()
    }
}
