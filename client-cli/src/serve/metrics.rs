//! Figures of the requests, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petals_client::{Generation, HopUse};

/// Upper ends of the histograms' buckets for times, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0];
/// Upper ends of the histogram's buckets for speeds, in tokens per second.
const SPEEDS: [f64; 16] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4];
/// Hops that are told of, so that a swarm that changes for weeks does not fill the memory.
const HOPS: usize = 256;

/// Everything counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Figures>);

/// What is so at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Texts that are being generated.
    pub(super) active: usize,
    /// Requests that wait.
    pub(super) waiting: usize,
    /// Finished texts that servers keep.
    pub(super) idle: usize,
}

#[derive(Debug, Default)]
struct Figures {
    /// By model, endpoint and status.
    requests: BTreeMap<(String, &'static str, u16), u64>,
    /// By model and how they ended.
    texts: BTreeMap<(String, &'static str), u64>,
    models: BTreeMap<String, OfModel>,
    /// By peer and blocks, with the number of the generation that used it last.
    hops: BTreeMap<(String, String), OfHop>,
    generations: u64,
}

#[derive(Debug, Default)]
struct OfModel {
    prompt_tokens: u64,
    reused_tokens: u64,
    new_tokens: u64,
    steps: u64,
    drafted: u64,
    accepted: u64,
    first_token: Histogram,
    each_token: Histogram,
    speed: Histogram,
}

#[derive(Debug, Clone, Copy, Default)]
struct OfHop {
    last_use: u64,
    steps: u64,
    elapsed: Duration,
    computed: Duration,
    queued: Duration,
    /// Of the last generation, each step.
    latest: Duration,
    latest_queued: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
struct Histogram {
    /// Observations up to each end, and above all of them.
    counts: [u64; 17],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, ends: &[f64; 16], value: f64, times: u64) {
        self.counts[ends.iter().position(|end| value <= *end).unwrap_or(ends.len())] += times;
        self.sum += value * times as f64;
    }

    fn write(&self, text: &mut String, name: &str, ends: &[f64; 16], labels: &str) {
        let mut total = 0;
        for (count, end) in self.counts.iter().zip(ends.iter().map(f64::to_string).chain(["+Inf".to_owned()])) {
            total += count;
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{end}\"}} {total}");
        }
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", self.sum);
    }
}

impl Metrics {
    /// A request was answered, or left without an answer.
    pub(super) fn request(&self, model: &str, endpoint: &'static str, status: u16) {
        *self.lock().requests.entry((model.to_owned(), endpoint, status)).or_default() += 1;
    }

    /// A text ended: `stop`, `length`, `cancelled` or `failed`.
    pub(super) fn text(&self, model: &str, how: &'static str) {
        *self.lock().texts.entry((model.to_owned(), how)).or_default() += 1;
    }

    /// The first tokens of a text came after `time`.
    pub(super) fn first_token(&self, model: &str, time: Duration) {
        self.lock().model(model).first_token.observe(&SECONDS, time.as_secs_f64(), 1);
    }

    /// `tokens` tokens came `time` after those before.
    pub(super) fn tokens(&self, model: &str, tokens: usize, time: Duration) {
        if tokens > 0 {
            let each = time.as_secs_f64() / tokens as f64;
            self.lock().model(model).each_token.observe(&SECONDS, each, tokens as u64);
        }
    }

    /// A text is complete.
    pub(super) fn generation(&self, model: &str, prompt: usize, generation: &Generation) {
        let mut figures = self.lock();
        let of = figures.model(model);
        of.prompt_tokens += prompt as u64;
        of.reused_tokens += generation.reused as u64;
        of.new_tokens += generation.tokens.len() as u64;
        of.steps += generation.steps as u64;
        of.drafted += generation.drafted as u64;
        of.accepted += generation.accepted as u64;
        if let Some(speed) = generation.tokens_per_s() {
            of.speed.observe(&SPEEDS, speed, 1);
        }
        figures.generations += 1;
        for hop in &generation.hops {
            figures.hop(hop);
        }
    }

    /// The text that Prometheus reads.
    pub(super) fn render(&self, now: Now) -> String {
        let figures = self.lock();
        let mut text = String::new();
        for (name, help, value) in [
            ("petals_active_texts", "Texts that are being generated.", now.active),
            ("petals_queued_requests", "Requests that wait for their turn.", now.waiting),
            ("petals_idle_sessions", "Finished texts that servers keep for what follows them.", now.idle),
        ] {
            head(&mut text, name, "gauge", help);
            let _ = writeln!(text, "{name} {value}");
        }
        head(
            &mut text,
            "petals_requests_total",
            "counter",
            "Requests by model, endpoint and HTTP status; 499: the client left.",
        );
        for ((model, endpoint, status), count) in &figures.requests {
            let (model, name) = (escape(model), "petals_requests_total");
            let _ = writeln!(text, "{name}{{model=\"{model}\",endpoint=\"{endpoint}\",status=\"{status}\"}} {count}");
        }
        head(&mut text, "petals_texts_total", "counter", "Texts by model and how they ended.");
        for ((model, how), count) in &figures.texts {
            let _ = writeln!(text, "petals_texts_total{{model=\"{}\",finish=\"{how}\"}} {count}", escape(model));
        }
        figures.write_models(&mut text);
        figures.write_hops(&mut text);
        text
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Sums and counts are whole whatever happens while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    fn model(&mut self, name: &str) -> &mut OfModel {
        self.models.entry(name.to_owned()).or_default()
    }

    fn hop(&mut self, hop: &HopUse) {
        let number = self.generations;
        let of = self.hops.entry((hop.peer.to_string(), hop.span.to_string())).or_default();
        let steps = u32::try_from(hop.steps).unwrap_or(u32::MAX).max(1);
        of.last_use = number;
        of.steps += hop.steps as u64;
        of.elapsed += hop.timing.elapsed;
        of.computed += hop.timing.computed;
        of.queued += hop.timing.queued;
        of.latest = hop.timing.elapsed / steps;
        of.latest_queued = hop.timing.queued / steps;
        if self.hops.len() > HOPS {
            let oldest = self.hops.iter().min_by_key(|(_, of)| of.last_use).map(|(key, _)| key.clone());
            oldest.map(|key| self.hops.remove(&key));
        }
    }

    fn write_models(&self, text: &mut String) {
        type Count = fn(&OfModel) -> u64;
        let counters: [(&str, &str, Count); 6] = [
            ("petals_prompt_tokens_total", "Tokens of prompts.", |of| of.prompt_tokens),
            ("petals_reused_tokens_total", "Tokens of prompts that servers had from the text before.", |of| {
                of.reused_tokens
            }),
            ("petals_completion_tokens_total", "Tokens generated.", |of| of.new_tokens),
            ("petals_steps_total", "Steps through all blocks.", |of| of.steps),
            ("petals_foreseen_tokens_total", "Tokens that were foreseen and sent.", |of| of.drafted),
            ("petals_accepted_tokens_total", "Tokens that were foreseen rightly.", |of| of.accepted),
        ];
        for (name, help, count) in counters {
            head(text, name, "counter", help);
            for (model, of) in &self.models {
                let _ = writeln!(text, "{name}{{model=\"{}\"}} {}", escape(model), count(of));
            }
        }
        type Times = fn(&OfModel) -> Histogram;
        let histograms: [(&str, &str, &[f64; 16], Times); 3] = [
            ("petals_time_to_first_token_seconds", "From a request to the first token.", &SECONDS, |of| of.first_token),
            ("petals_time_per_token_seconds", "Between further tokens.", &SECONDS, |of| of.each_token),
            ("petals_tokens_per_second", "Of each text, behind its first token.", &SPEEDS, |of| of.speed),
        ];
        for (name, help, ends, histogram) in histograms {
            head(text, name, "histogram", help);
            for (model, of) in &self.models {
                histogram(of).write(text, name, ends, &format!("model=\"{}\"", escape(model)));
            }
        }
    }

    fn write_hops(&self, text: &mut String) {
        type Figure = fn(&OfHop) -> f64;
        let figures: [(&str, &str, &str, Figure); 6] = [
            ("petals_hop_steps_total", "counter", "Steps of a hop.", |of| of.steps as f64),
            ("petals_hop_seconds_total", "counter", "Time of a hop's steps, way included.", |of| {
                of.elapsed.as_secs_f64()
            }),
            ("petals_hop_compute_seconds_total", "counter", "The part in which the server computed.", |of| {
                of.computed.as_secs_f64()
            }),
            ("petals_hop_queue_seconds_total", "counter", "The part spent waiting for others there.", |of| {
                of.queued.as_secs_f64()
            }),
            ("petals_hop_step_seconds", "gauge", "A step of the latest text.", |of| of.latest.as_secs_f64()),
            ("petals_hop_step_queue_seconds", "gauge", "The wait in a step of the latest text.", |of| {
                of.latest_queued.as_secs_f64()
            }),
        ];
        for (name, kind, help, figure) in figures {
            head(text, name, kind, help);
            for ((peer, blocks), of) in &self.hops {
                let _ = writeln!(text, "{name}{{peer=\"{peer}\",blocks=\"{blocks}\"}} {}", figure(of));
            }
        }
        // Which hops the latest text went through, and in which order the blocks follow.
        head(text, "petals_route_hop", "gauge", "1 for the hops of the latest text.");
        for ((peer, blocks), of) in &self.hops {
            let used = u8::from(of.last_use == self.generations);
            let _ = writeln!(text, "petals_route_hop{{peer=\"{peer}\",blocks=\"{blocks}\"}} {used}");
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value. Only names that are served get here.
fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.request("m:\"a\"", "chat", 200);
        metrics.text("m", "stop");
        metrics.first_token("m", Duration::from_millis(30));
        metrics.tokens("m", 4, Duration::from_millis(400));
        metrics.tokens("m", 0, Duration::from_millis(400));
        let text = metrics.render(Now { active: 2, waiting: 3, idle: 4 });
        for line in [
            "petals_active_texts 2",
            "petals_queued_requests 3",
            "petals_idle_sessions 4",
            "petals_requests_total{model=\"m:\\\"a\\\"\",endpoint=\"chat\",status=\"200\"} 1",
            "petals_texts_total{model=\"m\",finish=\"stop\"} 1",
            "petals_time_to_first_token_seconds_bucket{model=\"m\",le=\"0.02\"} 0",
            "petals_time_to_first_token_seconds_bucket{model=\"m\",le=\"0.05\"} 1",
            "petals_time_to_first_token_seconds_bucket{model=\"m\",le=\"+Inf\"} 1",
            "petals_time_per_token_seconds_bucket{model=\"m\",le=\"0.1\"} 4",
            "petals_time_per_token_seconds_count{model=\"m\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
        // Every figure has a help and a type, once.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
            assert_eq!(text.matches(&format!("# TYPE {base} ")).count(), 1, "{name}");
        }
    }
}
