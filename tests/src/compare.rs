//! Differences relative to the largest value, the measure of every tolerance here.

/// Largest absolute difference, divided by the largest absolute value expected.
///
/// # Panics
/// If the lengths differ.
pub fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "another number of values");
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |max, v| max.max(v.abs()));
    let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // `max` ignores NaN, which must not pass for equality.
    differences.fold(0.0, |max: f32, d| if d.is_nan() { f32::INFINITY } else { max.max(d) }) / largest
}

/// Panics unless `got` is within `tolerance` of `expected`.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    let difference = largest_difference(got, expected);
    assert!(difference <= tolerance, "{what}: relative difference {difference:e}, allowed {tolerance:e}");
}

/// Panics unless two loss curves have the same length and agree at each step, relative to the expected loss.
pub fn assert_curves_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: another number of steps");
    for (step, (a, b)) in got.iter().zip(expected).enumerate() {
        let difference = (a - b).abs() / b.abs();
        assert!(difference <= tolerance, "{what}, step {step}: {a} for {b}, relative difference {difference:e}");
    }
}
