//! `--lr auto`: some rates are tried where the run begins, and the best one becomes the run's.

use std::collections::BTreeMap;

use anyhow::Error;
use petals_client::{Example, TriedRate, best_rate};

use super::Run;
use super::material::Material;
use crate::data::BatchPlan;
use crate::error::CliError;
use crate::output::{RateChosen, RateTried};

/// The setting that has the rate.
const FLAG: &str = "--lr";
/// Rates that are tried, as multiples of the mode's usual one.
const FACTORS: [f64; 6] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Steps with each of them.
const STEPS: u64 = 10;

/// The settings of a run, by flag.
type Settings = BTreeMap<String, String>;

/// A run that goes on has the rate that was found when it began.
pub(super) fn recall(saved: &Settings, fresh: &mut Settings) {
    if let Some(rate) = saved.get(FLAG).filter(|_| peak(fresh).is_none()) {
        fresh.insert(FLAG.to_owned(), rate.clone());
    }
}

/// The highest rate of a run; `None` if it is still to be found.
pub(super) fn peak(settings: &Settings) -> Option<f64> {
    settings.get(FLAG)?.parse().ok()
}

impl Run<'_> {
    /// Tries rates if none is known, and keeps the best one. Tables and optimiser stay as they are.
    pub(super) async fn find_rate(&mut self, material: &Material, plan: &mut BatchPlan) -> Result<(), CliError> {
        if peak(&self.record.settings).is_some() {
            return Ok(());
        }
        let batches: Vec<Vec<Example>> = (0..STEPS).map(|step| material.batch(plan, step)).collect();
        let mut tried: Vec<TriedRate> = Vec::new();
        for rate in FACTORS.map(|factor| rounded(factor * self.args.lr())) {
            let one = TriedRate::run(&self.tuner, &batches, rate).await;
            let one = one.map_err(|error| Error::from(error).context("while learning rates were tried"))?;
            let stable = one.is_stable(tried.first().unwrap_or(&one));
            self.output.emit(&RateTried::new(&one, stable))?;
            tried.push(one);
            // Larger ones are no better.
            if !stable {
                break;
            }
        }
        let Some(lr) = best_rate(&tried) else {
            return Err(anyhow::anyhow!("no learning rate that was tried is stable: give one with --lr").into());
        };
        self.record.settings.insert(FLAG.to_owned(), lr.to_string());
        self.output.emit(&RateChosen { lr, steps: STEPS, tried: tried.iter().map(|one| one.rate).collect() })
    }
}

/// With two digits: 0.03, and not 0.029999999999999999.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lr: &str) -> Settings {
        [(FLAG.to_owned(), lr.to_owned())].into()
    }

    #[test]
    fn a_rate_that_was_found_is_recalled_and_one_that_is_given_stays() {
        let mut fresh = settings("auto");
        assert_eq!(peak(&fresh), None);
        recall(&settings("0.03"), &mut fresh);
        assert_eq!(peak(&fresh), Some(0.03));
        recall(&settings("0.1"), &mut fresh);
        assert_eq!(peak(&fresh), Some(0.03));
    }

    #[test]
    fn rates_read_as_people_write_them() {
        let rates = FACTORS.map(|factor| rounded(factor * 0.01).to_string());
        assert_eq!(rates, ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3"]);
    }
}
