//! Merges of a vocabulary that has scores in their place.

use std::collections::HashMap;

use petals_client::{GgufVocabulary, TokenKind};

use super::{as_piece, is_spaces};

/// Longest piece, in characters, of which the merges are looked for: those of models have at most 128.
const LONGEST: usize = 256;

/// Two parts, with the score of what they are together.
struct Merge<'a> {
    score: f32,
    /// In characters.
    lengths: [usize; 2],
    ids: [usize; 2],
    parts: [&'a str; 2],
}

/// The merges, the most likely first: each piece that is two others put together, as transformers' `generate_merges` has them.
pub(super) fn of(vocabulary: &GgufVocabulary) -> Vec<[String; 2]> {
    let kind = |id: usize| vocabulary.kinds.get(id).copied().unwrap_or(TokenKind::Normal);
    let spaces = |id: usize| kind(id) == TokenKind::UserDefined && is_spaces(&vocabulary.tokens[id]);
    let merged = |id: &usize| kind(*id) == TokenKind::Normal || spaces(*id);
    // What is found before anything else is merged before anything else, whatever score it was given.
    let score = |id: usize| if spaces(id) { f32::INFINITY } else { vocabulary.scores[id] };
    let pieces: Vec<(String, usize)> =
        (0..vocabulary.tokens.len()).filter(merged).map(|id| (as_piece(&vocabulary.tokens[id]), id)).collect();
    let ids: HashMap<&str, usize> = pieces.iter().map(|(piece, id)| (piece.as_str(), *id)).collect();
    let mut merges = Vec::new();
    for (piece, id) in &pieces {
        if piece.chars().nth(LONGEST).is_some() {
            continue;
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&first), Some(&second)) = (ids.get(left), ids.get(right)) {
                let lengths = [left.chars().count(), right.chars().count()];
                merges.push(Merge { score: score(*id), lengths, ids: [first, second], parts: [left, right] });
            }
        }
    }
    // Python sorts by the ids of the parts first, then in reverse by score and lengths, which leaves the first order among equals.
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)).then(a.ids.cmp(&b.ids)));
    merges.into_iter().map(|merge| merge.parts.map(str::to_owned)).collect()
}
