//! How long a run takes.

use std::fmt::{self, Display};

use petals_client::{Source, StepEstimate};
use serde::Serialize;

use super::Event;

/// What is known of a run's time before its first step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Estimated {
    /// Seconds of a step.
    step_s: f64,
    /// Seconds of all steps that are still to be made.
    left_s: f64,
    /// Where the servers' speed is known from.
    source: Source,
}

impl Estimated {
    /// The time of `steps` such steps.
    pub(crate) fn new(step: StepEstimate, steps: u64) -> Self {
        let step_s = step.elapsed.as_secs_f64();
        Self { step_s, left_s: step_s * steps as f64, source: step.source }
    }
}

impl Event for Estimated {
    const NAME: &'static str = "estimate";
}

impl Display for Estimated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = match self.source {
            Source::Measured => "as measured from here",
            Source::Announced | Source::Assumed => "as the servers announce their speed",
        };
        write!(
            f,
            "about {} a step, {} in all, {from}; the first steps will tell better",
            Left(self.step_s),
            Left(self.left_s)
        )
    }
}

/// Seconds in words for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left(pub(crate) f64);

impl Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, f64, &str); 4] = [
            (100.0, 1.0, "s"),
            (100.0 * 60.0, 60.0, "min"),
            (48.0 * 3600.0, 3600.0, "h"),
            (f64::INFINITY, 86400.0, "days"),
        ];
        let (_, unit, name) = UNITS.into_iter().find(|(below, ..)| self.0 < *below).unwrap_or((0.0, 86400.0, "days"));
        let value = self.0 / unit;
        if value < 10.0 { write!(f, "{value:.1} {name}") } else { write!(f, "{value:.0} {name}") }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_have_the_unit_that_people_count_in() {
        let words = |seconds: f64| Left(seconds).to_string();
        let cases = [
            (0.26, "0.3 s"),
            (99.0, "99 s"),
            (150.0, "2.5 min"),
            (5000.0, "83 min"),
            (9000.0, "2.5 h"),
            (864_000.0, "10 days"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(words(seconds), expected);
        }
    }

    #[test]
    fn an_estimate_says_what_it_is_of_and_from_where() {
        let step = StepEstimate { elapsed: Duration::from_millis(1500), source: Source::Announced };
        let estimated = Estimated::new(step, 100);
        assert!(estimated.to_string().starts_with("about 1.5 s a step, 2.5 min in all, as the servers announce"));
        let json = serde_json::json!({"step_s": 1.5, "left_s": 150.0, "source": "announced"});
        assert_eq!(serde_json::to_value(&estimated).unwrap(), json);
    }
}
