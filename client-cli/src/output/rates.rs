//! What `--lr auto` tried and chose.

use std::fmt::{self, Display};

use petals_client::TriedRate;
use serde::Serialize;

use super::Event;

/// A learning rate was tried from where the run begins.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RateTried {
    /// The rate.
    pub(crate) lr: f64,
    /// Losses of its steps, each before its update.
    pub(crate) losses: Vec<f64>,
    /// Mean loss of the last ones; missing if numbers stopped to be finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<f64>,
    /// Whether the losses stayed where they may.
    pub(crate) stable: bool,
}

/// The rate that the run is made with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RateChosen {
    /// The rate.
    pub(crate) lr: f64,
    /// Steps that were made with each.
    pub(crate) steps: u64,
    /// All rates that were tried.
    pub(crate) tried: Vec<f64>,
}

impl RateTried {
    /// What became of a rate.
    pub(crate) fn new(tried: &TriedRate, stable: bool) -> Self {
        Self { lr: tried.rate, losses: tried.losses.clone(), last: tried.ending(), stable }
    }
}

impl Event for RateTried {
    const NAME: &'static str = "lr_tried";
}

impl Event for RateChosen {
    const NAME: &'static str = "lr_chosen";
}

impl Display for RateTried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "learning rate {}: ", self.lr)?;
        match (self.last, self.losses.first()) {
            (Some(last), Some(first)) => write!(f, "loss {first:.4} to {last:.4} in {} steps", self.losses.len())?,
            _ => write!(f, "numbers are not finite after {} steps", self.losses.len())?,
        }
        f.write_str(if self.stable { "" } else { ", not stable" })
    }
}

impl Display for RateChosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "learning rate {} is the best of the {} tried and is the run's", self.lr, self.tried.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    #[test]
    fn people_read_what_was_tried_and_scripts_by_name() {
        let tried = |finite| TriedRate { rate: 0.03, losses: vec![2.0, 1.5, 1.0, 0.5], finite };
        let line = |event: &RateTried| Output::new(false).line(event).unwrap();
        assert_eq!(line(&RateTried::new(&tried(true), true)), "learning rate 0.03: loss 2.0000 to 1.0000 in 4 steps");
        let ended = line(&RateTried::new(&tried(false), false));
        assert_eq!(ended, "learning rate 0.03: numbers are not finite after 4 steps, not stable");
        let json = Output::new(true).line(&RateTried::new(&tried(true), true)).unwrap();
        assert_eq!(json, r#"{"event":"lr_tried","lr":0.03,"losses":[2.0,1.5,1.0,0.5],"last":1.0,"stable":true}"#);
        let chosen = RateChosen { lr: 0.03, steps: 10, tried: vec![0.01, 0.03] };
        assert_eq!(
            Output::new(true).line(&chosen).unwrap(),
            r#"{"event":"lr_chosen","lr":0.03,"steps":10,"tried":[0.01,0.03]}"#
        );
    }
}
