//! How many foreseen tokens are worth sending. Pure: no network, no clock.
//!
//! A step of one row costs what the way costs and reads every weight; further rows cost little over a long way and something on a
//! machine nearby. With the share of foreseen tokens that turned out right, this says which number brings most tokens a second.

/// Weight of a new measurement in the running means.
const NEW_WEIGHT: f64 = 0.2;
/// As many tokens are taken into account in a rate of hits, in the long run.
const MEMORY: f64 = 24.0;
/// As many made-up tokens stand for what is not known yet.
const PRIOR: f64 = 2.0;
/// Tokens that are sent before anybody knows what they cost.
const FIRST: usize = 4;

/// How often tokens were foreseen rightly, by one way of foreseeing.
#[derive(Debug, Clone, Copy)]
pub(super) struct HitRate {
    hits: f64,
    tried: f64,
}

impl HitRate {
    /// What is believed before anything was seen.
    pub(super) fn new(prior: f64) -> Self {
        Self { hits: prior * PRIOR, tried: PRIOR }
    }

    /// The first `right` tokens were right; the next one, if there was one, was not.
    pub(super) fn record(&mut self, right: usize, wrong: bool) {
        for hit in std::iter::repeat_n(1.0, right).chain(wrong.then_some(0.0)) {
            let keep = if self.tried < MEMORY { 1.0 } else { 1.0 - 1.0 / MEMORY };
            self.hits = self.hits * keep + hit;
            self.tried = self.tried * keep + 1.0;
        }
    }

    /// Chance of the next token to be right, if those before it are.
    fn chance(self) -> f64 {
        self.hits / self.tried
    }
}

/// What steps cost, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepCost {
    /// Of one row.
    single: Option<f64>,
    /// Of each row more.
    further: Option<f64>,
}

impl StepCost {
    /// Takes a step of `rows` rows into account.
    pub(super) fn record(&mut self, rows: usize, seconds: f64) {
        let mix = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + NEW_WEIGHT * (new - old)));
        match (rows, self.single) {
            (0, _) => {}
            (1, _) | (_, None) => self.single = mix(self.single, seconds),
            (rows, Some(single)) => {
                self.further = mix(self.further, (seconds - single).max(0.0) / (rows - 1) as f64);
                if seconds < single {
                    // One row takes no longer than several; without this a slow start would be believed for ever.
                    self.single = mix(self.single, seconds);
                }
            }
        }
    }

    /// The number of foreseen tokens, up to `most`, that brings most tokens a second, and how many that are. Each costs `draft` seconds
    /// to foresee.
    pub(super) fn best(self, rate: HitRate, most: usize, draft: f64) -> (usize, f64) {
        let chance = rate.chance();
        let (Some(single), Some(further)) = (self.single, self.further) else { return (most.min(FIRST), chance) };
        let (mut best, mut best_speed) = (0, 1.0 / single.max(f64::MIN_POSITIVE));
        let (mut expected, mut all_right) = (1.0, 1.0);
        for count in 1..=most {
            all_right *= chance;
            expected += all_right;
            let speed = expected / (single + count as f64 * (further + draft)).max(f64::MIN_POSITIVE);
            if speed > best_speed {
                (best, best_speed) = (count, speed);
            }
        }
        (best, best_speed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(single: f64, further: f64) -> StepCost {
        StepCost { single: Some(single), further: Some(further) }
    }

    #[test]
    fn what_is_sure_or_costs_nothing_is_sent_and_what_is_dear_and_unsure_is_not() {
        let mut sure = HitRate::new(0.5);
        sure.record(100, false);
        let mut unsure = HitRate::new(0.5);
        (0..100).for_each(|_| unsure.record(0, true));
        assert_eq!(costs(0.1, 0.001).best(sure, 16, 0.0).0, 16);
        assert_eq!(costs(0.1, 0.1).best(unsure, 16, 0.0).0, 0);
        assert_eq!(costs(0.1, 0.0).best(HitRate::new(0.5), 5, 0.0).0, 5);
        let some = costs(0.1, 0.01).best(HitRate::new(0.6), 16, 0.0).0;
        assert!((2..8).contains(&some), "{some}");
        assert!(costs(0.1, 0.01).best(HitRate::new(0.6), 16, 0.02).0 < some, "foreseeing costs as well");
        assert_eq!(StepCost::default().best(sure, 16, 0.0).0, FIRST);
    }

    #[test]
    fn rates_follow_what_happens_lately() {
        let mut rate = HitRate::new(0.5);
        rate.record(300, false);
        assert!(rate.chance() > 0.95);
        (0..50).for_each(|_| rate.record(0, true));
        assert!(rate.chance() < 0.15);
    }

    #[test]
    fn costs_are_learnt_from_steps() {
        let mut cost = StepCost::default();
        cost.record(1, 0.1);
        cost.record(5, 0.14);
        assert!((cost.further.unwrap() - 0.01).abs() < 1e-9);
        cost.record(3, 0.05);
        assert!(cost.further.unwrap() >= 0.0);
    }
}
