//! First values of the trained tables (design: Lester et al. 2021, section 3.2).

use std::error::Error;
use std::f64::consts::TAU;

use petals_protocol::Injection;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{PromptTables, Table, TableShape};

/// Where the prompts' first values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitRule {
    /// Normally distributed with the model's `initializer_range`.
    Normal,
    /// The embeddings of random tokens.
    SampleVocab,
    /// The embeddings of these tokens, repeated and cut to the prefix length.
    Text(Vec<u32>),
}

/// Where the deep prompts' first values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeepInit {
    /// Zeros, so that the first step equals `ptune`. The default for [`Injection::Add`].
    Zeros,
    /// Normally distributed with the model's `initializer_range`.
    Normal,
    /// By the same rule as the input prompt, anew for each block. The default for [`Injection::Replace`].
    LikeInput,
    /// What the input prompt becomes on its way through the blocks, so that the first step of [`Injection::Replace`] equals `ptune`. The
    /// tables do not know the blocks: whoever asks for it puts them in, and until then they are zeros.
    States,
}

/// How tables get their first values. The score head is always normally distributed, and so are keys and
/// values until those of [`TableInit::prefix_tokens`] are put in their place; low-rank tables begin as PEFT's do, with `B`
/// zero, and scales as ones, so that the first step equals that without them.
#[derive(Debug, Clone, PartialEq)]
pub struct TableInit {
    /// For the input prompt.
    pub rule: InitRule,
    /// For the deep prompts; `None` for the default of the injection.
    pub deep: Option<DeepInit>,
    /// Standard deviation of normally distributed values, the model's `initializer_range`.
    pub std: f32,
    /// Tokens to sample from.
    pub vocab_size: u32,
    /// Equal seeds give equal tables, and the input prompt of a seed is the same in every mode.
    pub seed: u64,
}

/// Why tables could not be initialised; `E` is the error of the embedding look-up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError<E: Error + 'static> {
    /// A text without tokens cannot be repeated.
    #[error("the text to start the prompt from has no tokens")]
    EmptyText,
    /// There is nothing to sample.
    #[error("the vocabulary is empty")]
    EmptyVocabulary,
    /// The embeddings could not be read.
    #[error("the embeddings to start the prompt from could not be read")]
    Embeddings(#[source] E),
    /// The look-up answered with the wrong number of values.
    #[error("the embeddings of {tokens} tokens have {got} values, expected {expected}")]
    EmbeddingsShape {
        /// Tokens asked for.
        tokens: usize,
        /// Values received.
        got: usize,
        /// Values needed.
        expected: usize,
    },
}

impl PromptTables {
    /// Tables with their first values. `embed` returns the embeddings `[ids, hidden]` of token ids.
    ///
    /// # Errors
    /// [`InitError`].
    pub fn initialise<E: Error + 'static>(
        shape: TableShape,
        init: &TableInit,
        mut embed: impl FnMut(&[u32]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, InitError<E>> {
        let mut tables = Self::zeros(shape);
        let prompt_len = shape.prompt_len();
        for (table, values) in tables.parts_mut().each_mut() {
            let mut random = Source::new(init, table);
            match (table, init.deep_rule(shape.injection)) {
                (Table::Score | Table::KeysValues, _) | (Table::Deep, DeepInit::Normal) => random.fill_normal(values),
                (Table::Deep, DeepInit::Zeros | DeepInit::States) | (Table::LowRankB(_), _) => {}
                (Table::LowRankA(module), _) => random.fill_uniform(values, module.extents(shape.widths)[0]),
                (Table::Scale(_), _) => values.fill(1.0),
                (Table::Input, _) | (Table::Deep, DeepInit::LikeInput) => {
                    for prompt in values.chunks_exact_mut(prompt_len) {
                        random.fill_prompt(prompt, shape.prefix_len, &mut embed)?;
                    }
                }
            }
        }
        Ok(tables)
    }
}

impl TableInit {
    /// The tokens whose keys and values a prefix of so many rows starts as; none if its first values are random. The tables do not know the
    /// blocks that these come from.
    pub fn prefix_tokens(&self, rows: usize) -> Vec<u32> {
        Source::new(self, Table::KeysValues).tokens(rows)
    }

    fn deep_rule(&self, injection: Injection) -> DeepInit {
        let default = if injection == Injection::Add { DeepInit::Zeros } else { DeepInit::LikeInput };
        self.deep.unwrap_or(default)
    }
}

/// Random values of one table. Every table has a stream of its own, so that adding one does not change the others.
struct Source<'a> {
    init: &'a TableInit,
    rng: ChaCha8Rng,
}

impl<'a> Source<'a> {
    fn new(init: &'a TableInit, table: Table) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(init.seed);
        rng.set_stream(stream(table));
        Self { init, rng }
    }

    /// Box-Muller: two normal values from two uniform ones.
    fn fill_normal(&mut self, values: &mut [f32]) {
        for pair in values.chunks_mut(2) {
            let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt() * f64::from(self.init.std);
            let angle = TAU * self.rng.random::<f64>();
            for (value, unit) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                *value = (radius * unit) as f32;
            }
        }
    }

    /// Uniform up to `1 / sqrt(features)`, as PEFT starts `lora_A` (Kaiming with `a = sqrt(5)`).
    fn fill_uniform(&mut self, values: &mut [f32], features: usize) {
        let bound = 1.0 / (features.max(1) as f32).sqrt();
        values.iter_mut().for_each(|value| *value = self.rng.random_range(-bound..=bound));
    }

    /// Tokens for so many rows; none if there are none to take.
    fn tokens(&mut self, rows: usize) -> Vec<u32> {
        match &self.init.rule {
            InitRule::SampleVocab if self.init.vocab_size > 0 => {
                (0..rows).map(|_| self.rng.random_range(0..self.init.vocab_size)).collect()
            }
            InitRule::Text(text) => text.iter().copied().cycle().take(rows).collect(),
            InitRule::Normal | InitRule::SampleVocab => Vec::new(),
        }
    }

    fn fill_prompt<E: Error + 'static>(
        &mut self,
        prompt: &mut [f32],
        rows: usize,
        embed: &mut impl FnMut(&[u32]) -> Result<Vec<f32>, E>,
    ) -> Result<(), InitError<E>> {
        let ids: Vec<u32> = match &self.init.rule {
            InitRule::Normal => {
                self.fill_normal(prompt);
                return Ok(());
            }
            InitRule::SampleVocab if self.init.vocab_size == 0 => return Err(InitError::EmptyVocabulary),
            InitRule::Text(text) if text.is_empty() => return Err(InitError::EmptyText),
            InitRule::SampleVocab | InitRule::Text(_) => self.tokens(rows),
        };
        let values = embed(&ids).map_err(InitError::Embeddings)?;
        if values.len() != prompt.len() {
            return Err(InitError::EmbeddingsShape { tokens: rows, got: values.len(), expected: prompt.len() });
        }
        prompt.copy_from_slice(&values);
        Ok(())
    }
}

/// The number of a table's random stream.
fn stream(table: Table) -> u64 {
    match table {
        Table::Input => 0,
        Table::Deep => 1,
        Table::Score => 2,
        Table::KeysValues => 3,
        Table::LowRankA(module) => 16 + module as u64,
        Table::LowRankB(module) => 32 + module as u64,
        Table::Scale(module) => 48 + module as u64,
    }
}
