//! One row of the table.

use std::fmt;
use std::time::Duration;

use petals_e2e::Assault;

use crate::chains::{Held, Taken};

pub(crate) const HEAD: &str = "\
| attack | training, s: calm | beside | ratio | least, most | tokens, s: calm | beside | ratio | least, most | attackers got, a round | servers' processors, s | MiB before | beside at most | after | descriptors before | beside at most | after |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// What the rounds of one attack gave. Losses and tokens were the same in all of them, or there would be none.
pub(crate) struct Figures {
    assault: Assault,
    training: Pairs,
    text: Pairs,
    got: Vec<f64>,
    busy: Vec<f64>,
    before: Held,
    most: Held,
    after: Option<Held>,
}

/// Seconds in calm, and beside attackers.
#[derive(Default)]
struct Pairs(Vec<(f64, f64)>);

impl Figures {
    pub(crate) fn new(assault: Assault, before: Held) -> Self {
        let (training, text) = (Pairs::default(), Pairs::default());
        Self { assault, training, text, got: Vec::new(), busy: Vec::new(), before, most: before, after: None }
    }

    /// One round: what attackers got, what the servers had of the processors meanwhile in seconds, and what they held at its end.
    pub(crate) fn add(&mut self, calm: &Taken, beside: &Taken, got: u64, busy: f64, held: Held) {
        self.training.add(calm.training, beside.training);
        self.text.add(calm.text, beside.text);
        self.got.push(got as f64);
        self.busy.push(busy);
        self.most.bytes = self.most.bytes.max(held.bytes);
        self.most.descriptors = self.most.descriptors.max(held.descriptors);
    }

    /// What they hold when nobody attacks any more.
    pub(crate) fn afterwards(&mut self, held: Held) {
        self.after = Some(held);
    }
}

impl Pairs {
    fn add(&mut self, calm: Duration, beside: Duration) {
        self.0.push((calm.as_secs_f64(), beside.as_secs_f64()));
    }
}

impl fmt::Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nobody trains through an HTTP server.
        if self.0.iter().all(|(calm, _)| *calm == 0.0) {
            return f.write_str(" | | | ");
        }
        let of = |value: fn(&(f64, f64)) -> f64| self.0.iter().map(value).collect::<Vec<_>>();
        let ratios = sorted(of(|(calm, beside)| beside / calm));
        let [calm, beside] = [of(|(calm, _)| *calm), of(|(_, beside)| *beside)].map(median);
        let [least, most] = [ratios.first(), ratios.last()].map(|ratio| ratio.copied().unwrap_or_default());
        write!(f, "{calm:.2} | {beside:.2} | {:.2} | {least:.2}, {most:.2}", median(ratios))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.after.unwrap_or(self.most);
        let name = format!("{:?}", self.assault).to_lowercase();
        write!(f, "| {name} | {} | {} ", self.training, self.text)?;
        write!(f, "| {:.0} | {:.1} ", median(self.got.clone()), median(self.busy.clone()))?;
        let bytes = [self.before, self.most, after].map(|held| held.bytes >> 20);
        let descriptors = [self.before, self.most, after].map(|held| held.descriptors);
        let [a, b, c] = bytes;
        let [x, y, z] = descriptors;
        write!(f, "| {a} | {b} | {c} | {x} | {y} | {z} |")
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
