//! What a model is asked when it writes texts about a context itself (the seeds of arXiv 2506.06266, section 4.1).

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::commands::given;
use crate::error::CliError;
use crate::text::{TextError, TextTokenizer};

/// What is asked of a model that answers questions: of its structure, for a summary, for questions, for uses, freely.
const QUESTIONS: [&str; 12] = [
    "Summarize the text above in a few sentences.",
    "Summarize one part of the text above in detail. Say which part it is.",
    "List the most important facts in the text above, with names, dates and numbers.",
    "Write a question that only somebody who has read the text above can answer, and answer it.",
    "Write three short questions about details of the text above, each with its answer.",
    "Describe in what order the text above takes up its subjects.",
    "Rewrite a part of the text above as a table or as JSON.",
    "Quote a sentence of the text above that matters, and explain what it means there.",
    "Who or what is named in the text above? Say of each what is said about it.",
    "What would somebody use the text above for? Give an example and work it out.",
    "Explain something from the text above to somebody who knows nothing of the subject.",
    "Which statements of the text above depend on each other? Explain how.",
];

/// Tokens of an excerpt that a model without a chat template goes on from.
const EXCERPT: usize = 8;

/// Prompts by number: equal numbers give equal ones.
pub(super) struct Prompts {
    kind: Kind,
    seed: u64,
}

enum Kind {
    /// In turn.
    Given(Vec<String>),
    /// Tokens of the context from anywhere.
    Excerpts(Vec<u32>),
}

impl Prompts {
    /// Those of a file, or questions if `asks`, or else excerpts of the context, which has at least one token.
    ///
    /// # Errors
    /// If the file cannot be read or has none.
    pub(super) fn new(file: Option<&Path>, asks: bool, context: &[u32], seed: u64) -> Result<Self, CliError> {
        let kind = match file {
            Some(path) => Kind::Given(read(path)?),
            None if asks => Kind::Given(QUESTIONS.map(str::to_owned).to_vec()),
            None => Kind::Excerpts(context.to_vec()),
        };
        Ok(Self { kind, seed })
    }

    /// The prompt of a number.
    ///
    /// # Errors
    /// [`TextError`] if an excerpt cannot be decoded.
    pub(super) fn text(&self, number: usize, tokenizer: &TextTokenizer) -> Result<String, TextError> {
        match &self.kind {
            Kind::Given(texts) => Ok(texts.get(number % texts.len().max(1)).cloned().unwrap_or_default()),
            Kind::Excerpts(context) => tokenizer.decode(excerpt(context, self.seed, number as u64)),
        }
    }
}

fn excerpt(context: &[u32], seed: u64, number: u64) -> &[u32] {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    let last = context.len().saturating_sub(EXCERPT);
    let start = random.random_range(0..=last);
    context.get(start..).map_or(&[], |rest| rest.get(..EXCERPT).unwrap_or(rest))
}

/// The prompts in a file: its lines, of which those that are JSON strings are what these say.
fn read(path: &Path) -> Result<Vec<String>, CliError> {
    let text = given::text("--study-prompts", path)?;
    let prompts: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str::<String>(line).unwrap_or_else(|_| line.to_owned()))
        .collect();
    if prompts.is_empty() {
        return Err(CliError::Usage(format!("--study-prompts {} has no prompts", path.display())));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn excerpts_lie_within_the_context_and_depend_on_the_number_alone() {
        let context: Vec<u32> = (0..100).collect();
        for number in 0..50 {
            let text = excerpt(&context, 7, number);
            assert!(text.len() == EXCERPT && text.windows(2).all(|pair| pair[1] == pair[0] + 1));
            assert_eq!(text, excerpt(&context, 7, number));
        }
        assert_ne!(excerpt(&context, 7, 1), excerpt(&context, 7, 2));
        assert_eq!(excerpt(&context[..3], 7, 1), [0, 1, 2]);
    }

    #[test]
    fn lines_of_a_file_are_prompts_and_json_strings_are_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.txt");
        fs::write(&path, "What is it?\n\n\"\\nagain:\"\n").unwrap();
        assert_eq!(read(&path).unwrap(), ["What is it?", "\nagain:"]);
        fs::write(&path, "\n \n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no prompts"));
    }
}
