//! Generated texts.

use std::fmt::{self, Display};

use petals_client::{Generation, HopUse};
use serde::Serialize;

use super::{Event, short};

/// A generated text.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Generated {
    /// The new text, without the prompt and the stop string.
    pub(crate) text: String,
    /// Its tokens, with what ended it.
    pub(crate) token_ids: Vec<u32>,
    /// Counted from 1, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) number: Option<usize>,
    /// What ended it: `stop_token`, `stop_string` or `length`.
    pub(crate) finish: &'static str,
    /// How it came about.
    #[serde(flatten)]
    pub(crate) course: Course,
}

/// How a text came about.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Course {
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// New tokens.
    new_tokens: usize,
    /// Steps through all blocks.
    steps: usize,
    /// Foreseen tokens that were sent.
    drafted: usize,
    /// Those that were right.
    accepted: usize,
    time_to_first_token_s: f64,
    elapsed_s: f64,
    /// Behind the first token; nothing of a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    hops: Vec<HopCourse>,
}

/// One server's part, summed over all steps.
#[derive(Debug, Clone, Serialize)]
struct HopCourse {
    peer: String,
    blocks: String,
    steps: usize,
    elapsed_s: f64,
    computed_s: f64,
    queued_s: f64,
}

impl Course {
    /// Of a text behind a prompt.
    pub(crate) fn new(prompt_tokens: usize, generation: &Generation) -> Self {
        let hop = |HopUse { peer, span, steps, timing }: &HopUse| HopCourse {
            peer: peer.to_string(),
            blocks: span.to_string(),
            steps: *steps,
            elapsed_s: timing.elapsed.as_secs_f64(),
            computed_s: timing.computed.as_secs_f64(),
            queued_s: timing.queued.as_secs_f64(),
        };
        Self {
            prompt_tokens,
            new_tokens: generation.tokens.len(),
            steps: generation.steps,
            drafted: generation.drafted,
            accepted: generation.accepted,
            time_to_first_token_s: generation.time_to_first_token.as_secs_f64(),
            elapsed_s: generation.elapsed.as_secs_f64(),
            tokens_per_s: generation.tokens_per_s(),
            hops: generation.hops.iter().map(hop).collect(),
        }
    }
}

impl Event for Generated {
    const NAME: &'static str = "generated";
}

impl Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "[{number}] {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_tokens, new_tokens, steps, drafted, accepted, time_to_first_token_s: first, .. } = self;
        write!(f, "{new_tokens} tokens behind {prompt_tokens} in {steps} steps, the first after {first:.2} s")?;
        if let Some(rate) = self.tokens_per_s {
            write!(f, ", then {rate:.1} tokens/s")?;
        }
        if *drafted > 0 {
            write!(f, "; {accepted} of {drafted} foreseen tokens were right")?;
        }
        for HopCourse { peer, blocks, steps, elapsed_s, computed_s, queued_s } in &self.hops {
            let each = |seconds: &f64| seconds * 1e3 / *steps as f64;
            let (elapsed, computed, queued) = (each(elapsed_s), each(computed_s), each(queued_s));
            write!(f, "\n  blocks {blocks} via {}: {steps} steps of {elapsed:.1} ms", short(peer))?;
            write!(f, " (computed {computed:.1} ms, queued {queued:.1} ms)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use petals_client::Finish;

    use super::*;

    #[test]
    fn texts_have_the_documented_json_and_read_as_they_are() {
        let generation = Generation {
            tokens: vec![1, 2, 3],
            finish: Finish::Length,
            reused: 0,
            steps: 2,
            drafted: 4,
            accepted: 1,
            time_to_first_token: Duration::from_millis(500),
            elapsed: Duration::from_millis(1500),
            hops: Vec::new(),
        };
        let course = Course::new(7, &generation);
        let said = "3 tokens behind 7 in 2 steps, the first after 0.50 s, then 2.0 tokens/s; 1 of 4 foreseen tokens were right";
        assert_eq!(course.to_string(), said);
        let generated =
            Generated { text: "a\n".into(), token_ids: generation.tokens, number: Some(2), finish: "length", course };
        assert_eq!(generated.to_string(), "[2] a\n");
        let json = concat!(
            r#"{"text":"a\n","token_ids":[1,2,3],"number":2,"finish":"length","prompt_tokens":7,"new_tokens":3,"steps":2,"#,
            r#""drafted":4,"accepted":1,"time_to_first_token_s":0.5,"elapsed_s":1.5,"tokens_per_s":2.0,"hops":[]}"#
        );
        assert_eq!(serde_json::to_string(&generated).unwrap(), json);
    }
}
