//! Who foresees tokens, and how many.

use std::time::Duration;

use super::lookup;
use super::pace::{HitRate, StepCost};

/// How often a text is believed to go on alike after one, two and three equal tokens, before anything was seen of it.
const PRIORS: [f64; 3] = [0.2, 0.4, 0.6];

/// Foresees tokens, and learns which of its ways are worth it.
#[derive(Debug)]
pub(super) struct Drafter {
    lookup: [HitRate; 3],
    cost: StepCost,
    /// What was foreseen for the step under way, and more of the same: what was not sent shows afterwards as well whether it would
    /// have been right.
    foreseen: Option<Foreseen>,
    sent: usize,
}

#[derive(Debug)]
struct Foreseen {
    alike: usize,
    tokens: Vec<u32>,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { lookup: PRIORS.map(HitRate::new), cost: StepCost::default(), foreseen: None, sent: 0 }
    }
}

impl Drafter {
    /// At most `most` tokens that may follow `text`.
    pub(super) fn draft(&mut self, text: &[u32], most: usize, lookup: bool) -> Vec<u32> {
        let found = if lookup && most > 0 { lookup::find(text) } else { None };
        self.foreseen = found.map(|found| Foreseen { alike: found.alike, tokens: found.continuation(text, most) });
        let Some(Foreseen { alike, tokens }) = &self.foreseen else {
            self.sent = 0;
            return Vec::new();
        };
        self.sent = self.cost.best(self.lookup[alike - 1], tokens.len(), 0.0).min(tokens.len());
        tokens[..self.sent].to_vec()
    }

    /// What followed, and how long the step took, if it says anything of others.
    pub(super) fn learn(&mut self, followed: &[u32], elapsed: Option<Duration>) {
        if let Some(elapsed) = elapsed {
            self.cost.record(1 + self.sent, elapsed.as_secs_f64());
        }
        if let Some(Foreseen { alike, tokens }) = self.foreseen.take() {
            let right = tokens.iter().zip(followed).take_while(|(foreseen, token)| foreseen == token).count();
            self.lookup[alike - 1].record(right, right < followed.len().min(tokens.len()));
        }
    }
}
