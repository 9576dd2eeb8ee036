//! What the kernels take, in values of f32.

use crate::engine::shapes::AttentionSizes;

/// Queries that a task takes at a time; probabilities and their gradients, twice, because the buffers grow.
const BUFFERED: u64 = 4 * 64;

/// Probabilities and their gradients for one block of queries per thread, and the gradients that each example has for the
/// prefix's keys and values.
pub(super) fn attention(AttentionSizes { longest, prefix, examples, heads }: AttentionSizes) -> u64 {
    let scores = threads().saturating_mul(BUFFERED).saturating_mul(longest.max(prefix).saturating_add(prefix));
    scores.saturating_add(examples.saturating_mul(prefix).saturating_mul(2 * heads.key_width() as u64))
}

/// Scores for one block of queries per thread.
pub(super) fn cached_attention(sequences: &[(u64, u64)]) -> u64 {
    let longest = sequences.iter().map(|(new, kept)| new.saturating_add(*kept)).max().unwrap_or_default();
    threads().saturating_mul(BUFFERED).saturating_mul(longest)
}

fn threads() -> u64 {
    rayon::current_num_threads() as u64
}
