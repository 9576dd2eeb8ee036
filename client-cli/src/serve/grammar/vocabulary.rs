//! The model's tokens as bytes, as llguidance wants them.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::text::Pieces;

/// Bytes of the longest token that may be used in forms. The tree of tokens has no room for more.
const LONGEST: usize = 512;
/// What one form may cost. llguidance has these for grammars of its own people; these come from strangers.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// What makes forms ready for a model of `count` tokens. One token more, the last, stands for the end of the text: models have several
/// such, or none.
///
/// # Errors
/// What llguidance says of the tokens.
pub(super) fn factory(pieces: &Pieces, count: usize) -> Result<ParserFactory, String> {
    let end = u32::try_from(count).map_err(|_| "the model has too many tokens".to_owned())?;
    let mut words: Vec<Vec<u8>> = (0..end).map(|token| word(pieces, token)).collect();
    words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<|end of the text|>"[..]].concat());
    let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::json_slices();
    let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|error| format!("{error:#}"))?;
    factory.quiet();
    *factory.limits_mut() = LIMITS;
    Ok(factory)
}

/// What a token adds to a text; tokens that are not seen in texts have a mark in front of their names, and none that cannot be used
/// anything.
fn word(pieces: &Pieces, token: u32) -> Vec<u8> {
    let bytes = pieces.bytes(token);
    if bytes.is_empty() || bytes.len() > LONGEST {
        Vec::new()
    } else if pieces.is_seen(token) {
        bytes
    } else {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
    }
}
