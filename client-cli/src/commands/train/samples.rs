//! How held-out texts go on with the tables as they are: what `--eval-generate` shows.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Error;
use futures::stream::{self, StreamExt, TryStreamExt};
use petals_client::{Example, Finish, GenerationConfig, Generator, PromptTables, RemoteModel, Speculation, Target};

use crate::output::{Sample, Samples};
use crate::text::{TextStream, TextTokenizer};

/// Texts that are generated at a time.
const SIDE_BY_SIDE: usize = 16;

/// What is needed to continue texts.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    /// The model as it is without tables.
    pub(super) model: RemoteModel,
    pub(super) tokenizer: &'a TextTokenizer,
    /// Positions of the model.
    pub(super) positions: usize,
    /// Texts.
    pub(super) texts: usize,
    /// Most tokens of each.
    pub(super) tokens: usize,
}

impl Sampler<'_> {
    /// Continues the first examples greedily, behind `step` steps.
    pub(super) async fn samples(
        &self,
        step: u64,
        tables: PromptTables,
        examples: &[Example],
    ) -> Result<Samples, Error> {
        let room = self.positions.saturating_sub(tables.shape().prefix_len);
        let model = self.model.clone().with_tables(Some(Arc::new(tables)));
        let texts = examples.iter().take(self.texts).map(|example| self.sample(model.clone(), room, example));
        let samples = stream::iter(texts).buffered(SIDE_BY_SIDE).try_collect().await?;
        Ok(Samples { step, samples })
    }

    async fn sample(&self, model: RemoteModel, room: usize, example: &Example) -> Result<Sample, Error> {
        let (prompt, expected) = parts(example);
        let most = self.tokens.min(room.saturating_sub(prompt.len()));
        let config = GenerationConfig {
            max_new_tokens: most,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            // A few tokens are not worth finding out what can be foreseen.
            speculation: Speculation::OFF,
            ..GenerationConfig::default()
        };
        let mut generator = Generator::new(model, prompt.len() + most);
        let generation = generator.generate(prompt, &config, |_| ControlFlow::Continue(())).await?;
        let behind = |tokens: &[u32]| {
            let mut stream = TextStream::new(self.tokenizer, prompt, []);
            Ok::<_, Error>(stream.push(tokens)? + &stream.finish()?)
        };
        let finish = if generation.finish == Finish::StopToken { "stop_token" } else { "length" };
        let (generated, expected) = (behind(&generation.tokens)?, behind(expected)?);
        Ok(Sample { prompt: self.tokenizer.decode(prompt)?, generated, expected, finish })
    }
}

/// What of an example is given, and what should follow: in front of and behind the border between a prompt and its completion, the last answer of a
/// conversation, the first and the second half of a text.
fn parts(example: &Example) -> (&[u32], &[u32]) {
    let tokens = &example.tokens[..];
    let (from, to) = match example.target.plain() {
        Target::NextToken { from } => (*from, tokens.len()),
        Target::Tokens(spans) => spans
            .iter()
            .rev()
            .find(|span| span.start < tokens.len())
            .map_or((0, tokens.len()), |span| (span.start, span.end.min(tokens.len()))),
        Target::Class(_) | Target::Taught(..) => (tokens.len(), tokens.len()),
    };
    // Nothing but what begins every text is in front of a text that is learnt as a whole.
    let (from, to) = if from > 1 { (from, to) } else { (tokens.len().div_ceil(2), tokens.len()) };
    let (given, rest) = tokens.split_at(from.min(tokens.len()));
    (given, rest.get(..to.saturating_sub(from)).unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_the_prompt_the_talk_so_far_or_half_a_text() {
        let example = |target| Example { tokens: (10..17).collect(), target };
        let cases: [(Target, &[u32], &[u32]); 5] = [
            (Target::NextToken { from: 3 }, &[10, 11, 12], &[13, 14, 15, 16]),
            (Target::NextToken { from: 1 }, &[10, 11, 12, 13], &[14, 15, 16]),
            (Target::Tokens(vec![2..3, 4..6]), &[10, 11, 12, 13], &[14, 15]),
            // The last answer was cut off.
            (Target::Tokens(vec![2..3, 9..12]), &[10, 11], &[12]),
            (Target::Tokens(vec![1..2, 5..20]), &[10, 11, 12, 13, 14], &[15, 16]),
        ];
        for (target, given, expected) in cases {
            assert_eq!(parts(&example(target.clone())), (given, expected), "{target:?}");
        }
    }
}
