//! Learning rate schedules, with the formulas of transformers' `get_{constant,linear,cosine}_schedule_with_warmup`.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::adapter::names::{UnknownName, parse_name};

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
}

/// A learning rate for every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Shape of the curve.
    pub schedule: Schedule,
    /// Steps over which the rate rises from 0 to the peak; step 0 itself has rate 0 then.
    pub warmup: u64,
    /// Steps of the whole run, warm-up included.
    pub total: u64,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 3] = [Self::Constant, Self::Linear, Self::Cosine];
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        })
    }
}

impl FromStr for Schedule {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_name("schedule", text, &Self::ALL)
    }
}

impl LearningRate {
    /// The rate of the step with index `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let falling = self.total.saturating_sub(self.warmup).max(1) as f64;
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => self.total.saturating_sub(step) as f64 / falling,
            Schedule::Cosine => 0.5 * (1.0 + (PI * (step - self.warmup) as f64 / falling).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, warmup: u64, total: u64) -> Vec<f64> {
        (0..10).map(|step| LearningRate { peak: 1.0, schedule, warmup, total }.at(step)).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert!(got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?}");
    }

    /// Expected values were printed by transformers 4.57.
    #[test]
    fn factors_equal_those_of_transformers() {
        assert_close(&factors(Schedule::Constant, 2, 8), &[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let linear = [0.0, 0.5, 1.0, 0.833_333_333_3, 0.666_666_666_7, 0.5, 0.333_333_333_3, 0.166_666_666_7, 0.0, 0.0];
        assert_close(&factors(Schedule::Linear, 2, 8), &linear);
        let cosine = [0.0, 0.5, 1.0, 0.933_012_701_9, 0.75, 0.5, 0.25, 0.066_987_298_1, 0.0, 0.066_987_298_1];
        assert_close(&factors(Schedule::Cosine, 2, 8), &cosine);
        assert_close(&factors(Schedule::Linear, 0, 4), &[1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn schedules_are_parsed_as_they_are_printed() {
        assert!(Schedule::ALL.iter().all(|schedule| schedule.to_string().parse() == Ok(*schedule)));
    }

    #[test]
    fn a_warmup_longer_than_the_run_only_rises() {
        let short = LearningRate { peak: 2.0, schedule: Schedule::Linear, warmup: 10, total: 4 };
        assert_close(&[short.at(3), short.at(10)], &[0.6, 0.0]);
    }
}
