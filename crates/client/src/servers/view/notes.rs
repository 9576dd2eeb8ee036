//! Why servers may be there that are not seen.

use petals_swarm::ClockOffset;

use super::SwarmView;
use crate::planner::MissingBlocks;

/// Models that a message lists.
const LISTED_MODELS: usize = 8;

impl SwarmView {
    /// What to say if blocks are missing: a clock that hides servers, or other models that the swarm serves.
    pub(crate) async fn missing_note(&self, missing: &MissingBlocks) -> Option<String> {
        match self.clock_note().await {
            Some(note) => Some(note),
            None => self.models_note(missing).await,
        }
    }

    /// Which models the swarm serves, if all blocks of this one are missing: with some servers there, the model is the right one.
    pub(crate) async fn models_note(&self, missing: &MissingBlocks) -> Option<String> {
        if missing.spans != [self.blocks] || !missing.excluded.is_empty() {
            return None;
        }
        let others = self.swarm.models().await;
        let others: Vec<String> = others.into_iter().map(|(model, _)| model.to_string()).collect();
        let (first, more) = (others.iter().take(LISTED_MODELS), others.len().saturating_sub(LISTED_MODELS));
        let listed = first.cloned().collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let same = others.iter().any(|other| other.split('@').next() == Some(self.model.name()));
        let why = if same { " (of one name, the part behind @ tells files apart that differ)" } else { "" };
        match others.is_empty() {
            true => Some(format!("{} is looked for, and no model is seen in this swarm", self.model)),
            false => Some(format!("{} is looked for, and the swarm serves {listed}{more}{why}", self.model)),
        }
    }

    /// What to say if servers may be there that are not seen because a clock is wrong.
    async fn clock_note(&self) -> Option<String> {
        if let Some(offset) = self.swarm.clock_offset().await.filter(ClockOffset::is_too_large) {
            return Some(format!(
                "this machine's clock is {offset} of those of the swarm, so that it takes records of servers for old or not yet written: set \
                 the clock"
            ));
        }
        let wrong = self.swarm.wrong_clocks(&self.model, self.blocks).await.ok()?;
        let (first, more) = wrong.split_first()?;
        let others = if more.is_empty() { String::new() } else { format!(" (as are those of {} others)", more.len()) };
        Some(format!(
            "the clock of server {} is {} of this machine's{others}, so that its record is refused: set the clock there",
            first.peer, first.offset
        ))
    }
}
