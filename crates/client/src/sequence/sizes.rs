//! Whether values that a server gives can be what they should be, by their size alone.
//!
//! A single value near the end of what f32 holds is finite, passes every check of shapes, and is infinite one server later, which is then blamed. So
//! what leaves a span is compared with what entered it: blocks are much the same for every pass, and what one of them usually multiplies
//! by is learnt. Before anything is known the bounds are far beyond what models do.

use std::collections::HashMap;
use std::sync::Mutex;

use petals_protocol::{Refusal, Span};

use super::error::chain;
use super::{RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::Hop;
use crate::servers::exchange::Flow;
use crate::servers::hop::HopError;

/// Times that a span may multiply by more than it ever did before somebody looks twice.
const UNUSUAL: f64 = 1e4;
/// What a span may multiply by as long as nothing is known of it. The largest activations of models, a few thousand where embeddings have hundredths, are far below.
const UNKNOWN: f64 = 1e9;
/// Passes after which something is known.
const KNOWN_AFTER: u32 = 4;
/// Smallest size that is compared with: of nothing anything is a multiple.
const SMALLEST: f64 = 1e-12;
/// Spans that are remembered; more are not in use at a time.
const MOST: usize = 1024;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// What leaves a span, with what entered it.
    Rows,
    /// The gradient of what enters it, with that of what left it.
    Gradient,
    /// The gradients of its tables, with the same.
    Tables,
}

/// What spans usually multiply by: the largest value that leaves over the largest that enters.
#[derive(Debug, Default)]
pub(super) struct Sizes(Mutex<HashMap<(Kind, Span), Usual>>);

#[derive(Debug, Default, Clone, Copy)]
struct Usual {
    most: f64,
    passes: u32,
}

impl Sizes {
    /// Whether `left` can have come of `entered`; if so it counts for the next ones. Else what is wrong.
    pub(super) fn check(&self, kind: Kind, span: Span, entered: f64, left: f64) -> Result<(), String> {
        let factor = left / entered.max(SMALLEST);
        let mut all = lock(&self.0);
        if all.len() >= MOST && !all.contains_key(&(kind, span)) {
            all.clear();
        }
        let usual = all.entry((kind, span)).or_default();
        let limit = if usual.passes < KNOWN_AFTER { UNKNOWN } else { UNUSUAL * usual.most.max(1.0) };
        // One that is not a number is not below anything.
        if factor.is_nan() || factor > limit {
            let what = match kind {
                Kind::Rows => "hidden states",
                Kind::Gradient => "gradients",
                Kind::Tables => "gradients of tables",
            };
            return Err(format!(
                "{what} of up to {left:.1e} came of {entered:.1e}, which is far beyond what blocks do"
            ));
        }
        *usual = Usual { most: usual.most.max(factor), passes: usual.passes.saturating_add(1) };
        Ok(())
    }
}

impl RemoteSequence {
    /// An error unless `left` can be what a span makes of `entered`, the largest values of each.
    pub(super) fn plausible(&self, kind: Kind, span: Span, entered: f64, left: f64) -> Result<(), HopError> {
        self.sizes.check(kind, span, entered, left).map_err(HopError::BadReply)
    }

    /// Whether others hold all blocks of a hop, so that they can be asked for what it gave. Who is the only one is not doubted: nobody would be left.
    pub(super) fn is_replaceable(&self, hop: Hop) -> bool {
        let others = self.view.servers().into_iter().filter(|(peer, _)| *peer != hop.peer);
        let spans: Vec<Span> = others.map(|(_, info)| info.span).collect();
        hop.span.blocks().all(|block| spans.iter().any(|span| span.blocks().contains(&block)))
    }

    /// Tells that what a server gave is of no use to the next one, so that others are asked for it.
    pub(super) fn doubted(&self, hop: Hop, error: &HopError) {
        let reason = format!("what it gave leads to values that are not finite ({})", chain(error));
        self.tell(SwarmEvent::HopFailed { peer: hop.peer, span: hop.span, reason });
    }
}

/// Whether a server could not compute with what it was given, or gave what is not finite.
pub(super) fn is_overflow(error: &HopError) -> bool {
    match error {
        HopError::Refused(refusal) => matches!(refusal, Refusal::NotFinite { .. }),
        HopError::NotFinite(_) => true,
        _ => false,
    }
}

/// The largest magnitude of values.
pub(super) fn largest(values: &[f32]) -> f64 {
    // In lanes, so that compilers vectorise it: this runs over everything that travels.
    let (lanes, rest) = values.as_chunks::<16>();
    let mut most = [0.0f32; 16];
    for lane in lanes {
        most.iter_mut().zip(lane).for_each(|(most, value)| *most = most.max(value.abs()));
    }
    most.iter().chain(rest).fold(0.0, |most: f32, value| most.max(value.abs())).into()
}

/// The largest magnitude of text and prefix.
pub(super) fn largest_of(flow: &Flow) -> f64 {
    largest(&flow.text).max(flow.prefix.as_deref().map_or(0.0, largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_do_passes_and_one_absurd_value_does_not() {
        let (sizes, span) = (Sizes::default(), Span::new(0, 4).unwrap());
        let check = |kind, entered, left| sizes.check(kind, span, entered, left);
        // Massive activations, of embeddings that are small.
        assert_eq!(check(Kind::Rows, 0.01, 5000.0), Ok(()));
        let error = check(Kind::Gradient, 1e-3, 3e38).unwrap_err();
        assert!(error.contains("3.0e38"), "{error}");
        (0..KNOWN_AFTER).for_each(|_| assert_eq!(check(Kind::Gradient, 1e-3, 1e-2), Ok(())));
        assert!(check(Kind::Gradient, 1e-3, 1e4).is_err(), "a million times as much as usual");
        assert_eq!(check(Kind::Gradient, 1e-3, 1.0), Ok(()), "a hundred times may happen");
        assert_eq!(check(Kind::Tables, 1e-3, 1e4), Ok(()), "of these nothing is known");
        assert_eq!((check(Kind::Gradient, 0.0, 0.0), check(Kind::Tables, 0.0, 1e-20)), (Ok(()), Ok(())));
        assert!(check(Kind::Rows, 1.0, f64::INFINITY).is_err() && check(Kind::Rows, 1.0, f64::NAN).is_err());
    }

    #[test]
    fn the_largest_value_is_found_wherever_it_is() {
        for place in [0, 5, 15, 16, 33, 36] {
            let mut values = vec![0.5; 37];
            values[place] = -7.0;
            assert_eq!(largest(&values), 7.0, "{place}");
        }
        assert_eq!(largest(&[]), 0.0);
    }
}
