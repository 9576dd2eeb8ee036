//! Each operation against those of the other engines, on shapes of every kind, and what a span asks of its device, counted. On whichever Vulkan device there is.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for production code")]

use super::*;
use crate::device::Kind;
use crate::engine::Vulkan;
use crate::engine::burn::Burn;
use crate::engine::host::Host;
use crate::fixture::noise;

mod attention;
mod caches;
mod counts;
mod mixtures;
mod products;

/// The first Vulkan device. Where there is none the test that asks says so and is done.
fn vulkan() -> Option<Vulkan> {
    match "vulkan".parse::<crate::Device>() {
        Ok(device) => match device.kind() {
            Kind::Vulkan(adapter) => Some(Vulkan::new(&adapter.raw())),
            _ => None,
        },
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Results of an operation.
type Results = Vec<Vec<f32>>;

#[track_caller]
fn assert_close(what: &str, got: &Results, expected: &Results, tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (number, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}, result {number}");
        // Of what is about one, what is next to nothing may be wrong by any factor.
        let largest = expected.iter().fold(0.1f32, |most, v| most.max(v.abs()));
        let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let finite = got.iter().all(|v| v.is_finite());
        assert!(finite && worst <= tolerance * largest, "{what}, result {number}: off by {worst} of {largest}");
    }
}

fn values<E: Engine>(engine: &E, rows: E::Rows) -> Vec<f32> {
    engine.download(rows).unwrap()
}

fn rows<E: Engine>(engine: &E, seed: u64, height: usize, width: usize) -> E::Rows {
    engine.upload(noise(seed, height * width), width)
}
