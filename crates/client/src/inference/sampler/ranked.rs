//! Tokens in the order of their weights, sorted only as far as somebody looks.

use std::cmp::Ordering;

/// Tokens that are sorted at first; each further time four times as many.
const FIRST: usize = 64;

/// Tokens with their weights, the heaviest first. A vocabulary has 150,000 of which a draw looks at a few.
#[derive(Debug)]
pub(crate) struct Ranked {
    /// The first `sorted` are in order and before all others.
    tokens: Vec<(u32, f32)>,
    sorted: usize,
    highest: f32,
    temperature: f32,
}

impl Ranked {
    /// The tokens with the `top_k` highest scores (0: all) and, as in transformers, those equal to the last of them.
    pub(crate) fn new(scores: &[f32], temperature: f32, top_k: usize) -> Self {
        let limit = if top_k == 0 { f32::NEG_INFINITY } else { nth_highest(scores, top_k) };
        // What cannot be chosen has no place, not even the last one, where rounding would find it.
        let possible = |(_, score): &(u32, f32)| *score >= limit && *score > f32::NEG_INFINITY;
        let tokens: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).filter(possible).collect();
        let highest = tokens.iter().fold(f32::NEG_INFINITY, |highest, (_, score)| highest.max(*score));
        Self { tokens, sorted: 0, highest, temperature }
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The sum of all weights.
    pub(crate) fn total(&self) -> f64 {
        self.tokens.iter().map(|(_, score)| self.weight(*score)).sum()
    }

    /// A token and its weight, which is 1 for the first. Of equals the lower token comes first; transformers leaves that to a sort that is
    /// not stable.
    pub(crate) fn get(&mut self, rank: usize) -> Option<(u32, f64)> {
        while rank >= self.sorted && self.sorted < self.tokens.len() {
            let rest = &mut self.tokens[self.sorted..];
            let more = (3 * self.sorted).max(FIRST).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable_by(more, falling);
            }
            rest[..more].sort_unstable_by(falling);
            self.sorted += more;
        }
        self.tokens.get(rank).map(|&(token, score)| (token, self.weight(score)))
    }

    fn weight(&self, score: f32) -> f64 {
        f64::from((score - self.highest) / self.temperature).exp()
    }
}

fn falling(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `n`-th highest score; below all of them if there are fewer.
fn nth_highest(scores: &[f32], n: usize) -> f32 {
    if n > scores.len() {
        return f32::NEG_INFINITY;
    }
    // Most scores are below the n-th highest of those before them and are not looked at again.
    let mut best = Vec::with_capacity((2 * n).min(scores.len()));
    let mut limit = f32::NEG_INFINITY;
    let cut = |best: &mut Vec<f32>| {
        let (_, &mut limit, _) = best.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        best.truncate(n);
        limit
    };
    for &score in scores {
        if score > limit || best.len() < n {
            best.push(score);
            if best.len() == 2 * n {
                limit = cut(&mut best);
            }
        }
    }
    cut(&mut best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_limits_are_those_of_a_full_sort() {
        let scores: Vec<f32> = (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as f32 / 100.0).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        sorted.sort_by(falling);
        let mut ranked = Ranked::new(&scores, 2.0, 0);
        for rank in [0, 63, 64, 3, 700, 4999] {
            assert_eq!(ranked.get(rank).map(|(token, _)| token), Some(sorted[rank].0), "{rank}");
        }
        assert_eq!(ranked.get(5000), None);
        for n in [1, 2, 63, 2500, 4999, 5000] {
            assert_eq!(nth_highest(&scores, n), sorted[n - 1].1, "{n}");
        }
        assert_eq!(Ranked::new(&scores, 1.0, 5001).len(), 5000);
        assert_eq!(Ranked::new(&[], 1.0, 5).get(0), None);
    }
}
