//! Every decoder against inputs that are nearly right.
//!
//! Each target starts from valid encodings and damages them, which gets deeper than random bytes. What is checked: no
//! panic, no more memory than stated, and that what is accepted can be used and encoded again. `PETALS_FUZZ_INPUTS` sets
//! the number of inputs of every target (`scripts/fuzz`: a million); a failure prints the input.

mod allocator;
mod files;
mod mutate;
mod quantised;
mod records;
mod texts;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mutate::Mutator;

/// Feeds a decoder damaged forms of `valid`, `inputs` in number unless the environment says otherwise. `decode` says
/// whether it accepted its input. `memory` is what one input may take at a time, in bytes, besides its own length.
pub(crate) fn fuzz(name: &str, valid: &[Vec<u8>], inputs: u64, memory: usize, mut decode: impl FnMut(&[u8]) -> bool) {
    let inputs = std::env::var("PETALS_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(inputs);
    for bytes in valid {
        assert!(decode(bytes), "{name}: an undamaged input is refused: {}", show(bytes));
    }
    let mut mutator = Mutator::new(name);
    let (mut bytes, mut accepted, mut highest) = (Vec::new(), 0u64, 0);
    let started = std::time::Instant::now();
    for _ in 0..inputs {
        mutator.damage(valid, &mut bytes);
        let (decoded, peak) = allocator::rise(|| catch_unwind(AssertUnwindSafe(|| decode(&bytes))));
        let Ok(decoded) = decoded else { panic!("{name}: panicked on {}", show(&bytes)) };
        accepted += u64::from(decoded);
        let peak = peak.saturating_sub(4 * bytes.len());
        highest = highest.max(peak);
        assert!(peak <= memory, "{name}: {peak} bytes of memory for {}", show(&bytes));
    }
    let share = 100.0 * accepted as f64 / inputs as f64;
    println!(
        "{name}: {inputs} inputs, {share:.1} % accepted, {} KiB at most, {:.1?}",
        highest >> 10,
        started.elapsed()
    );
    // Damage that everything or nothing survives tests little.
    assert!(accepted > 0 && accepted < inputs, "{name}: {accepted} of {inputs} accepted");
}

/// As a Rust byte string, to be copied into a test.
fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(2000)];
    format!("{} bytes, b\"{}\"", bytes.len(), shown.escape_ascii())
}
