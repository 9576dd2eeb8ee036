//! What the kernels take, in values of f32.

use crate::engine::shapes::{AttentionSizes, Heads};

/// Queries that a task takes at a time; probabilities and their gradients, twice, because the buffers grow, and the slopes of a soft cap.
const BUFFERED: u64 = 5 * 64;

/// Probabilities and their gradients for one block of queries per thread, and the gradients that each example has for the
/// prefix's keys and values.
pub(super) fn attention(AttentionSizes { longest, prefix, examples, heads }: AttentionSizes) -> u64 {
    let scores = threads().saturating_mul(BUFFERED).saturating_mul(longest.max(prefix).saturating_add(prefix));
    let of_prefix = examples.saturating_mul(prefix).saturating_mul(2 * heads.key_width() as u64);
    scores.saturating_add(of_prefix).saturating_add(biases(heads, longest.saturating_add(prefix)))
}

/// ALiBi's.
fn biases(heads: Heads, positions: u64) -> u64 {
    if heads.alibi.is_some() { positions.saturating_mul(heads.query as u64) } else { 0 }
}

/// Scores for one block of queries per thread.
pub(super) fn cached_attention(heads: Heads, sequences: &[(u64, u64)]) -> u64 {
    let longest = sequences.iter().map(|(new, kept)| new.saturating_add(*kept)).max().unwrap_or_default();
    threads().saturating_mul(BUFFERED).saturating_mul(longest).saturating_add(biases(heads, longest))
}

fn threads() -> u64 {
    rayon::current_num_threads() as u64
}
