//! Building blocks that compilers vectorise.

/// Accumulators of a reduction: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// Runs `kernel`, whose inlined code is compiled for the best instruction set that the processor has.
///
/// The closure must be `#[inline(always)]`, and so must be what it calls: code that stays a function of its own is
/// compiled for the least processor.
#[inline]
pub(crate) fn vectorized<R>(kernel: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(kernel)
}

/// `exp(x)` to about 2 units in the last place (Cephes' polynomial), 1e-38 below -87; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it leaves a number's nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons and not `clamp` or `max`: they compile to blends and let NaN through.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    mantissa * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Around zero the quotient would lose what the polynomial keeps.
    let small = x * (1.0 + x * x * (-1.0 / 3.0 + x * x * (2.0 / 15.0 - x * x * (17.0 / 315.0))));
    let large = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.1 { small } else { large }
}

/// The normal distribution's share below `x`, to about 1e-7 (Numerical Recipes' `erfcc`, a fit in `t = 1 / (1 + |x| / √8)`).
#[inline(always)]
pub(crate) fn normal(x: f32) -> f32 {
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * a);
    let mut p = 0.170_872_77f32;
    for c in
        [-0.822_152_23, 1.488_515_9, -1.135_204, 0.278_868_07, -0.186_288_06, 0.096_784_18, 0.374_091_96, 1.000_023_7]
    {
        p = p * t + c;
    }
    let beyond = 0.5 * t * exp(-a * a - 1.265_512_2 + t * p);
    // Numbers that are hardly numbers any more take processors a hundred times as long, here and in what is done with them.
    let beyond = if a > 9.0 { 0.0 } else { beyond };
    if x < 0.0 { beyond } else { 1.0 - beyond }
}

/// `sum(f(a_i, b_i))` in a fixed order, over as many elements as both have.
#[inline(always)]
pub(crate) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest value; -inf of nothing.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(chunk[i], lanes[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(b, a))
}

/// Replaces every value by `f` of it. Whole registers always: a short row would spend its time in a loop's scalar rest.
#[inline(always)]
fn replace(row: &mut [f32], f: impl Fn(f32) -> f32) {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        chunk.iter_mut().for_each(|v| *v = f(*v));
    }
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        padded.iter_mut().for_each(|v| *v = f(*v));
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Replaces `row` by `softmax(scale · row)`.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    softmax_with(row, scale, f32::NEG_INFINITY);
}

/// Replaces `row` by the softmax of `scale · row` and one more score, `sink`, whose probability is left out.
#[inline(always)]
pub(crate) fn softmax_with(row: &mut [f32], scale: f32, sink: f32) {
    let shift = max(row) * scale;
    let shift = if sink > shift { sink } else { shift };
    replace(
        row,
        #[inline(always)]
        |v| exp(v * scale - shift),
    );
    let of_sink = if sink == f32::NEG_INFINITY { 0.0 } else { exp(sink - shift) };
    let normaliser = (sum2(row, row, |v, _| v) + of_sink).recip();
    row.iter_mut().for_each(|v| *v *= normaliser);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "exp({x}) = {}, not {exact}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan() && exp(-1e30) < 1e-37 && exp(0.0) == 1.0);
    }

    #[test]
    fn normal_and_tanh_are_accurate() {
        // By the series of the error function, which converges for all of these.
        let exact = |x: f64| {
            let (mut term, mut sum, mut n) = (x, x, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -x * x / n;
                sum += term / (2.0 * n + 1.0);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        for i in -400..=400 {
            let x = i as f32 / 100.0;
            let share = 0.5 + 0.5 * exact(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
            let error = (f64::from(normal(x)) - share).abs();
            assert!(error < 3e-7, "normal({x}) is off by {error}");
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 3e-7, "tanh({x}) is off by {error}");
        }
        assert!(tanh(50.0) == 1.0 && tanh(-50.0) == -1.0 && normal(-30.0) == 0.0 && normal(30.0) == 1.0);
    }

    #[test]
    fn reductions_count_every_element_once() {
        let values: Vec<f32> = (0..37).map(|v| v as f32).collect();
        assert_eq!(sum2(&values, &values, |a, b| a + b), 1332.0);
        assert_eq!(max(&values), 36.0);
        let mut row = values;
        softmax(&mut row, 0.1);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6 && row[36] > row[35]);
    }
}
