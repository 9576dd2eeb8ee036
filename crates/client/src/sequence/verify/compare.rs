//! Whether two results are of one computation.
//!
//! What rounding explains depends on the wire and on what servers compute in. The latter is their word, so it is limited by what the user accepts
//! ([`crate::servers::accepted`]): nobody is allowed to be coarser by saying so. Results are compared as a whole and row by row: a row that was
//! replaced is nothing beside a thousand others.

use petals_protocol::WireDtype;
use petals_swarm::PeerId;

use super::{Question, RemoteSequence, SpanResult, Wanted};

/// What rounding to f32 leaves, summed in another order over many blocks.
const EXACT: f64 = 1e-3;
/// What four bits of a weight leave, in one server or in two that were made by different versions or from different checkpoints.
const OF_FOUR_BITS: f64 = 3e-1;
/// What a row may differ by, in what the whole may: errors are not spread evenly.
const ROW: f64 = 5.0;
/// Rows smaller than this part of the usual one count as this large: what is nearly nothing is mostly rounding.
const SMALL_ROW: f64 = 0.1;

impl RemoteSequence {
    /// How two results differ, if by more than their dtypes explain.
    pub(super) fn difference(
        &self,
        peers: &[&[PeerId]],
        asked: Question<'_>,
        one: &SpanResult,
        other: &SpanResult,
    ) -> Option<String> {
        let computed = peers.iter().copied().flatten().map(|&peer| {
            let dtype = self.view.info(peer).map(|info| info.dtype).unwrap_or_default();
            match dtype.as_str() {
                "f32" => EXACT,
                "f16" => 1e-2,
                "int4" if self.view.accepts("int4") => OF_FOUR_BITS,
                _ => 5e-2,
            }
        });
        let wire = match self.config.wire_dtype {
            WireDtype::F32 => EXACT,
            WireDtype::F16 => 1e-2,
            WireDtype::Bf16 => 5e-2,
            WireDtype::Int8 => 1e-1,
        };
        // Gradients have gone both ways, through more roundings.
        let backward = matches!(asked.wanted, Wanted::Gradients(_));
        let ways = if backward { 2.0 } else { 1.0 };
        let allowed = ways * computed.fold(wire, f64::max);
        let none = Vec::new();
        let of_block = one.tables.as_ref().map_or(0, |tables| tables.len() / asked.span.len());
        let parts = [
            ("hidden states", &*one.flow.text, &*other.flow.text, self.hidden),
            (
                "prefix",
                one.flow.prefix.as_ref().unwrap_or(&none),
                other.flow.prefix.as_ref().unwrap_or(&none),
                self.hidden,
            ),
            ("tables", one.tables.as_ref().unwrap_or(&none), other.tables.as_ref().unwrap_or(&none), of_block),
        ];
        parts.into_iter().find_map(|(what, one, other, width)| {
            let of = if backward { "gradients of the " } else { "" };
            let (whole, row) = relative_differences(one, other, width);
            // What is not a number is not small.
            if whole.is_nan() || whole > allowed {
                return Some(format!("{of}{what} differ by {whole:.1e} of their size, {allowed:.1e} is usual"));
            }
            let allowed = ROW * allowed;
            (row.is_nan() || row > allowed)
                .then(|| format!("a row of the {of}{what} differs by {row:.1e} of its size, {allowed:.1e} is usual"))
        })
    }
}

/// The norm of the difference over the larger norm: of everything, and of the row of `width` values where it is largest. Infinite for values of
/// different number.
fn relative_differences(one: &[f32], other: &[f32], width: usize) -> (f64, f64) {
    if one.len() != other.len() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let squares = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let apart = |one: &[f32], other: &[f32]| {
        one.iter().zip(other).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>()
    };
    let relative = |apart: f64, size: f64| if apart == 0.0 { 0.0 } else { (apart / size).sqrt() };
    let size = squares(one).max(squares(other));
    let whole = relative(apart(one, other), size);
    if width == 0 || one.len() < 2 * width {
        return (whole, 0.0);
    }
    let least = SMALL_ROW * SMALL_ROW * size / (one.len() / width) as f64;
    let rows = one.chunks(width).zip(other.chunks(width));
    let of_row = |(one, other)| relative(apart(one, other), squares(one).max(squares(other)).max(least));
    // A row that is not a number is the largest there is.
    let larger = |most: f64, row: f64| if row.is_nan() || row > most { row } else { most };
    (whole, rows.map(of_row).fold(0.0, larger))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_whole() {
        let relative_difference = |one: &[f32], other: &[f32]| relative_differences(one, other, 0).0;
        assert_eq!(relative_difference(&[], &[]), 0.0);
        assert_eq!(relative_difference(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((relative_difference(&[3.0, 4.0], &[3.0, 4.5]) - 0.5 / 29.25f64.sqrt()).abs() < 1e-9);
        assert_eq!(relative_difference(&[1.0], &[-1.0]), 2.0);
        assert!(relative_difference(&[1.0], &[]).is_infinite());
    }

    #[test]
    fn a_row_that_was_replaced_shows_among_a_thousand_others() {
        let width = 8;
        let honest: Vec<f32> = (0..1000 * width).map(|n| ((n * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut replaced = honest.clone();
        replaced[77 * width..78 * width].iter_mut().for_each(|value| *value = -*value);
        let (whole, row) = relative_differences(&honest, &replaced, width);
        // What half precision leaves of the whole hides it.
        assert!(whole > 0.0 && whole < 0.065 && row > ROW * 5e-2, "{whole} {row}");
        // Rounding does not look like that, in rows that are nearly nothing either.
        let small = |n: usize| if n / width == 3 { 1e-3 } else { 1.0 };
        let values: Vec<f32> = honest.iter().enumerate().map(|(n, x)| x * small(n)).collect();
        let rounded: Vec<f32> =
            values.iter().enumerate().map(|(n, x)| x + if n % 2 == 0 { 1e-3 } else { -1e-3 }).collect();
        let (whole, row) = relative_differences(&values, &rounded, width);
        assert!(whole < 1e-2 && row < ROW * 1e-2, "{whole} {row}");
    }
}
