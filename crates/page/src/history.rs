//! What was so a while ago, for curves.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Time between two samples.
pub(crate) const STEP: Duration = Duration::from_secs(5);
/// Samples that are kept: half an hour.
const SAMPLES: usize = 360;

/// What was so at a moment, or between it and the one before.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    /// Tokens per second that this program's blocks took.
    pub(crate) tokens: Option<f32>,
    /// Passes per second.
    pub(crate) passes: Option<f32>,
    /// Passes waiting or running.
    pub(crate) queue: Option<u32>,
    /// Bytes per second on block streams.
    pub(crate) bytes_in: f32,
    pub(crate) bytes_out: f32,
    /// Servers known.
    pub(crate) servers: u32,
    /// Tokens per second that the weakest block of the models has, as announced.
    pub(crate) weakest: f32,
}

/// The samples of the last half hour, written as columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(VecDeque<Sample>);

#[derive(Serialize)]
struct Columns {
    step_s: f64,
    tokens_per_s: Vec<Option<f32>>,
    passes_per_s: Vec<Option<f32>>,
    queue: Vec<Option<u32>>,
    bytes_in_per_s: Vec<f32>,
    bytes_out_per_s: Vec<f32>,
    servers: Vec<u32>,
    weakest_tokens_per_s: Vec<f32>,
}

impl History {
    /// Adds the newest sample, and forgets the oldest one if there are too many.
    pub(crate) fn push(&mut self, sample: Sample) {
        if self.0.len() >= SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }
}

impl Serialize for History {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn column<T>(samples: &VecDeque<Sample>, of: impl Fn(&Sample) -> T) -> Vec<T> {
            samples.iter().map(of).collect()
        }
        let samples = &self.0;
        let columns = Columns {
            step_s: STEP.as_secs_f64(),
            tokens_per_s: column(samples, |sample| sample.tokens),
            passes_per_s: column(samples, |sample| sample.passes),
            queue: column(samples, |sample| sample.queue),
            bytes_in_per_s: column(samples, |sample| sample.bytes_in),
            bytes_out_per_s: column(samples, |sample| sample.bytes_out),
            servers: column(samples, |sample| sample.servers),
            weakest_tokens_per_s: column(samples, |sample| sample.weakest),
        };
        columns.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_samples_are_forgotten() {
        let mut history = History::default();
        for servers in 0..2 * SAMPLES as u32 {
            history.push(Sample { servers, ..Sample::default() });
        }
        let json = serde_json::to_value(&history).unwrap();
        let servers = json["servers"].as_array().unwrap();
        assert_eq!((servers.len(), servers.last().unwrap().as_u64()), (SAMPLES, Some(2 * SAMPLES as u64 - 1)));
        assert!(json["tokens_per_s"][0].is_null());
    }
}
