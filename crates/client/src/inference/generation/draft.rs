//! Who foresees tokens, and how many.

use std::time::{Duration, Instant};

use super::Speculation;
use super::draft_model::{DraftModel, DraftText};
use super::lookup;
use super::pace::{HitRate, StepCost};
use crate::inference::sampler::Sampler;

/// How often a text is believed to go on alike after one, two and three equal tokens, before anything was seen of it.
const LOOKUP_PRIORS: [f64; 3] = [0.2, 0.4, 0.6];
/// How often a draft model is believed to be right at first.
const MODEL_PRIOR: f64 = 0.6;
/// After so many steps in which a draft model was not worth its time it is tried again: texts change.
const TRY_AGAIN: usize = 16;

/// Foresees tokens, and learns which of its ways are worth it.
#[derive(Debug)]
pub(super) struct Drafter {
    lookup: [HitRate; 3],
    cost: StepCost,
    model: Option<ModelDrafter>,
    /// What was foreseen for the step under way.
    foreseen: Option<Foreseen>,
    sent: usize,
}

#[derive(Debug)]
struct ModelDrafter {
    model: DraftModel,
    /// Nothing while it computes for a call that was dropped.
    text: Option<DraftText>,
    rate: HitRate,
    /// Seconds a token.
    cost: Option<f64>,
    idle: usize,
}

#[derive(Debug)]
struct Foreseen {
    way: Way,
    /// Those of a lookup go on behind what is sent: whether they would have been right shows all the same.
    tokens: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// So many tokens were alike.
    Lookup(usize),
    Model,
}

impl Drafter {
    pub(super) fn new(model: Option<DraftModel>) -> Self {
        let model = model.map(|model| ModelDrafter {
            text: Some(DraftText::new(model.clone())),
            model,
            rate: HitRate::new(MODEL_PRIOR),
            cost: None,
            idle: 0,
        });
        Self { lookup: LOOKUP_PRIORS.map(HitRate::new), cost: StepCost::default(), model, foreseen: None, sent: 0 }
    }

    /// Tokens that may follow `text`, at most `most`. A draft model is not asked while `reading` the prompt: the first token is waited
    /// for, and it would have to read the prompt first.
    pub(super) async fn draft(
        &mut self,
        text: &[u32],
        most: usize,
        speculation: Speculation,
        reading: bool,
        sampler: &Sampler,
    ) -> Vec<u32> {
        (self.foreseen, self.sent) = (None, 0);
        let most = most.min(speculation.max_draft);
        if most == 0 {
            return Vec::new();
        }
        let found = if speculation.lookup { lookup::find(text) } else { None };
        let from_lookup = found.map(|found| (found, self.cost.best(self.lookup[found.alike - 1], most, 0.0)));
        let from_model =
            if reading { None } else { self.model.as_mut().and_then(|model| model.worth(self.cost, most)) };
        if let Some((count, speed)) = from_model
            && from_lookup.is_none_or(|(_, (_, other))| speed > other)
            && let Some(model) = &mut self.model
        {
            let tokens = model.draft(text, count, sampler.clone()).await;
            self.sent = tokens.len();
            self.foreseen = Some(Foreseen { way: Way::Model, tokens: tokens.clone() });
            return tokens;
        }
        let Some((found, (count, _))) = from_lookup else { return Vec::new() };
        let tokens = found.continuation(text, most);
        self.sent = count;
        let sent = tokens[..count].to_vec();
        self.foreseen = Some(Foreseen { way: Way::Lookup(found.alike), tokens });
        sent
    }

    /// What followed, and how long the step took, if it says anything of others.
    pub(super) fn learn(&mut self, followed: &[u32], elapsed: Option<Duration>) {
        if let Some(elapsed) = elapsed {
            self.cost.record(1 + self.sent, elapsed.as_secs_f64());
        }
        let Some(Foreseen { way, tokens }) = self.foreseen.take() else { return };
        let right = tokens.iter().zip(followed).take_while(|(foreseen, token)| foreseen == token).count();
        let wrong = right < followed.len().min(tokens.len());
        match (way, &mut self.model) {
            (Way::Lookup(alike), _) => self.lookup[alike - 1].record(right, wrong),
            (Way::Model, Some(model)) => model.rate.record(right, wrong),
            (Way::Model, None) => {}
        }
    }
}

impl ModelDrafter {
    /// How many tokens are worth foreseeing, and the tokens per second that this promises.
    fn worth(&mut self, step: StepCost, most: usize) -> Option<(usize, f64)> {
        let (count, speed) = step.best(self.rate, most, self.cost.unwrap_or(0.0));
        if count > 0 {
            self.idle = 0;
            return Some((count, speed));
        }
        self.idle += 1;
        self.idle.is_multiple_of(TRY_AGAIN).then_some((1, f64::INFINITY))
    }

    async fn draft(&mut self, text: &[u32], count: usize, sampler: Sampler) -> Vec<u32> {
        let mut draft = self.text.take().unwrap_or_else(|| DraftText::new(self.model.clone()));
        // The first time it reads the prompt, which says nothing of the times after.
        let first = draft.is_empty();
        let text = text.to_vec();
        let computed = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let tokens = draft.draft(&text, count, sampler);
            (draft, tokens, began.elapsed())
        });
        let Ok((draft, tokens, elapsed)) = computed.await else { return Vec::new() };
        self.text = Some(draft);
        if !first && !tokens.is_empty() {
            let seconds = elapsed.as_secs_f64() / tokens.len() as f64;
            // A new turn of a conversation is read here as well; that is not believed for long.
            self.cost = Some(self.cost.map_or(seconds, |cost| cost + 0.3 * (seconds - cost)).min(2.0 * seconds));
        }
        tokens
    }
}
