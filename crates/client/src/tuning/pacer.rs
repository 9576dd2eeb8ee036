//! How large micro-batches are and how many are under way. Pure: no network, no clock.
//!
//! Hops and the link are the stages of a pipeline. A stage needs `fixed + per_token * tokens` for a micro-batch, forward and
//! backward together, which is fitted to what was measured. Small micro-batches keep all stages busy from early on; large
//! ones pay the fixed part less often. Of all ways to cut a batch the one with the shortest estimated time is taken; once a
//! size was tried, what whole batches took with it counts instead.

use std::time::Duration;

use petals_protocol::Span;

/// Tokens of a micro-batch, whatever was measured. Below, the products of a block are no longer matrix products; above,
/// servers may not have the memory.
const TOKENS: std::ops::RangeInclusive<usize> = 32..=2048;
/// Micro-batches under way, whatever was measured. Each may have a stash on every server; servers read no more than 32
/// requests of a stream ahead.
const IN_FLIGHT: std::ops::RangeInclusive<usize> = 2..=16;
/// What is tried before anything was measured.
const FIRST_PARTS: usize = 4;
const FIRST_TOKENS: std::ops::RangeInclusive<usize> = 128..=1024;
const FIRST_IN_FLIGHT: usize = 4;
/// Weight of a new measurement in the running means.
const NEW_WEIGHT: f64 = 0.3;
/// A cut that promises less than this is not worth a change.
const WORTH_A_CHANGE: f64 = 0.03;

/// After so many micro-batches in a row that took other hops, the route has changed.
const OTHERS: usize = 6;

/// How a batch goes through the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Micro-batches under way at a time.
    pub in_flight: usize,
}

/// What one micro-batch took, forward and backward.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    pub(crate) tokens: usize,
    /// Computation of each hop, in the order of the blocks. Which of several servers did it makes no difference.
    pub(crate) hops: Vec<(Span, Duration)>,
    /// From the first byte to the last, without what it waited for others.
    pub(crate) cycle: Duration,
}

/// Chooses the [`Pace`] from what earlier steps took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pacer {
    hops: Vec<(Span, Samples)>,
    /// Everything besides the hops' computation.
    rest: Samples,
    /// Parts of the last batch.
    parts: Option<usize>,
    /// Whether another size than the first was tried.
    explored: bool,
    /// Seconds per token of whole batches, by the size of their parts: what the stages take together shows only there,
    /// where some share a machine.
    batches: Samples,
    /// Micro-batches in a row that took other hops.
    others: usize,
}

impl Pacer {
    /// Takes a micro-batch into account. Where they are spread over several routes, the first one seen stands for all;
    /// when it is not seen any more, another one begins anew.
    pub(crate) fn record(&mut self, measured: &Measured) {
        let Measured { tokens, hops, cycle } = measured;
        if *tokens == 0 || hops.is_empty() {
            return;
        }
        if !self.hops.iter().map(|(span, _)| span).eq(hops.iter().map(|(span, _)| span)) {
            self.others += 1;
            if self.others < OTHERS && !self.hops.is_empty() {
                return;
            }
            let fresh = |(span, _): &(Span, Duration)| (*span, Samples::default());
            *self = Self { hops: hops.iter().map(fresh).collect(), parts: self.parts, ..Self::default() };
        }
        self.others = 0;
        for ((_, samples), (_, computed)) in self.hops.iter_mut().zip(hops) {
            samples.add(*tokens, computed.as_secs_f64());
        }
        let computed: Duration = hops.iter().map(|(_, computed)| *computed).sum();
        self.rest.add(*tokens, cycle.saturating_sub(computed).as_secs_f64());
    }

    /// Takes a whole batch into account. The first one after a change of the route does not count: it opens connections.
    pub(crate) fn record_batch(&mut self, tokens: usize, pace: Pace, elapsed: Duration) {
        if self.explored && tokens > 0 {
            self.batches.add(pace.micro_batch_tokens.min(tokens), elapsed.as_secs_f64() / tokens as f64);
        }
    }

    /// The pace for a batch of `tokens` tokens.
    pub(crate) fn pace(&mut self, tokens: usize) -> Pace {
        let tokens = tokens.max(1);
        if self.hops.is_empty() {
            let cut = tokens.div_ceil(FIRST_PARTS).clamp(*FIRST_TOKENS.start(), *FIRST_TOKENS.end());
            self.parts = Some(tokens.div_ceil(cut));
            return Pace { micro_batch_tokens: cut, in_flight: FIRST_IN_FLIGHT };
        }
        let model = Pipeline::of(self);
        let least = tokens.div_ceil(*TOKENS.end());
        let most = (tokens / *TOKENS.start()).max(least);
        // One measured size says nothing of others, so the next one is not far away.
        let last = self.parts.unwrap_or(least).clamp(least, most);
        let near = least.max(last / 2)..=most.min(2 * last);
        // Measured sizes by their measurement, others by the model, which makes them be tried if they promise something.
        let seconds = |parts: usize| {
            let measured = self.batches.of(tokens.div_ceil(parts));
            measured.map_or_else(|| model.seconds(tokens, parts), |seconds| seconds * tokens as f64)
        };
        let parts = if self.explored {
            let best = near.min_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).unwrap_or(last);
            if seconds(best) < (1.0 - WORTH_A_CHANGE) * seconds(last) { best } else { last }
        } else if *near.start() < last {
            *near.start()
        } else {
            *near.end()
        };
        self.explored = true;
        self.parts = Some(parts);
        let cut = tokens.div_ceil(parts);
        Pace { micro_batch_tokens: cut, in_flight: model.in_flight(cut).min(parts.max(*IN_FLIGHT.start())) }
    }
}

/// The stages that a micro-batch passes through.
#[derive(Debug)]
struct Pipeline {
    hops: Vec<Line>,
    /// The fixed part is on its way, where any number of micro-batches fit; the rest occupies the link.
    rest: Line,
}

impl Pipeline {
    fn of(pacer: &Pacer) -> Self {
        Self { hops: pacer.hops.iter().map(|(_, samples)| samples.line()).collect(), rest: pacer.rest.line() }
    }

    /// Seconds of each stage for a micro-batch.
    fn stages(&self, tokens: f64) -> impl Iterator<Item = f64> {
        let link = self.rest.per_token * tokens;
        self.hops.iter().map(move |line| line.at(tokens)).chain([link])
    }

    /// Seconds for a batch: the slowest stage works all the time, the others once before and after it.
    fn seconds(&self, tokens: usize, parts: usize) -> f64 {
        let part = tokens as f64 / parts as f64;
        let slowest = self.stages(part).fold(0.0, f64::max);
        let all: f64 = self.stages(part).sum();
        parts as f64 * slowest + (all - slowest) + self.rest.fixed
    }

    /// As many as the slowest stage gets done while one goes all the way, and one that waits for it.
    fn in_flight(&self, tokens: usize) -> usize {
        let tokens = tokens as f64;
        let slowest = self.stages(tokens).fold(0.0, f64::max);
        let all = self.stages(tokens).sum::<f64>() + self.rest.fixed;
        let wanted = if slowest > 0.0 { (all / slowest).ceil() as usize + 1 } else { FIRST_IN_FLIGHT };
        wanted.clamp(*IN_FLIGHT.start(), *IN_FLIGHT.end())
    }
}

/// Seconds by number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Line {
    fixed: f64,
    per_token: f64,
}

impl Line {
    fn at(self, tokens: f64) -> f64 {
        self.fixed + self.per_token * tokens
    }
}

/// Running means of (tokens, seconds) by size: one for each power of two, so that a size which is used all the time does
/// not push out what is known of others.
#[derive(Debug, Clone, Default)]
struct Samples([Option<(f64, f64)>; 16]);

impl Samples {
    /// The mean at a size.
    fn of(&self, tokens: usize) -> Option<f64> {
        self.0.get(Self::place(tokens)).copied().flatten().map(|(_, seconds)| seconds)
    }

    fn place(tokens: usize) -> usize {
        (tokens.max(1).ilog2() as usize).min(15)
    }

    fn add(&mut self, tokens: usize, seconds: f64) {
        let Some(mean) = self.0.get_mut(Self::place(tokens)) else { return };
        let new = (tokens as f64, seconds);
        let (old_tokens, old_seconds) = mean.unwrap_or(new);
        let mix = |old: f64, new: f64| old + NEW_WEIGHT * (new - old);
        *mean = Some((mix(old_tokens, new.0), mix(old_seconds, new.1)));
    }

    /// The straight line through the means with the least squares, neither part of it negative. Through one mean alone it
    /// has no fixed part, which is why a second size is tried once.
    fn line(&self) -> Line {
        let means = || self.0.iter().flatten().copied();
        let count = means().count() as f64;
        if count == 0.0 {
            return Line::default();
        }
        let (x, y) = means().fold((0.0, 0.0), |(x, y), (tokens, seconds)| (x + tokens / count, y + seconds / count));
        let (xx, xy) = means().fold((0.0, 0.0), |(xx, xy), (tokens, seconds)| {
            (xx + (tokens - x).powi(2), xy + (tokens - x) * (seconds - y))
        });
        let per_token = if xx > 0.0 { (xy / xx).max(0.0) } else { y / x };
        let fixed = y - per_token * x;
        if fixed < 0.0 { Line { fixed: 0.0, per_token: y / x } } else { Line { fixed, per_token } }
    }
}

#[cfg(test)]
mod tests;
