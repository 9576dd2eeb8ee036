use super::*;

/// A swarm whose true times are known.
struct Swarm {
    hops: Vec<(Span, Line)>,
    rest: Line,
}

impl Swarm {
    fn new(hops: &[Line], rest: Line) -> Self {
        let span = |n: usize| Span::new(n as u32, n as u32 + 1).unwrap();
        Self { hops: hops.iter().enumerate().map(|(n, line)| (span(n), *line)).collect(), rest }
    }

    fn measure(&self, tokens: usize) -> Measured {
        let seconds = |line: Line| Duration::from_secs_f64(line.at(tokens as f64));
        let hops: Vec<_> = self.hops.iter().map(|(span, line)| (*span, seconds(*line))).collect();
        let computed: Duration = hops.iter().map(|(_, time)| *time).sum();
        Measured { tokens, hops, cycle: computed + seconds(self.rest) }
    }

    /// The pace after so many steps on batches of `tokens`.
    fn settle(&self, pacer: &mut Pacer, tokens: usize, steps: usize) -> Pace {
        let lines: Vec<Line> = self.hops.iter().map(|(_, line)| *line).collect();
        let truth = Pipeline { hops: lines, rest: self.rest };
        self.settle_where(pacer, tokens, steps, |parts| truth.seconds(tokens, parts))
    }

    /// As [`Self::settle`], where a batch in so many parts takes what `seconds` says.
    fn settle_where(&self, pacer: &mut Pacer, tokens: usize, steps: usize, seconds: impl Fn(usize) -> f64) -> Pace {
        for _ in 0..steps {
            let pace = pacer.pace(tokens);
            let Pace { micro_batch_tokens, .. } = pace;
            let mut left = tokens;
            while left > 0 {
                let part = left.min(micro_batch_tokens);
                pacer.record(&self.measure(part));
                left -= part;
            }
            let elapsed = Duration::from_secs_f64(seconds(tokens.div_ceil(micro_batch_tokens)));
            pacer.record_batch(tokens, pace, elapsed);
        }
        pacer.pace(tokens)
    }

    /// Share of the time in which the slowest stage does the work that grows with the tokens.
    fn efficiency(&self, tokens: usize, pace: Pace) -> f64 {
        let lines = self.hops.iter().map(|(_, line)| *line).collect();
        let parts = tokens.div_ceil(pace.micro_batch_tokens);
        let busy = self.hops.iter().map(|(_, line)| line.per_token * tokens as f64).fold(0.0, f64::max);
        busy / Pipeline { hops: lines, rest: self.rest }.seconds(tokens, parts)
    }
}

const fn line(fixed: f64, per_token: f64) -> Line {
    Line { fixed, per_token }
}

const LAN: Line = line(0.001, 1e-6);

#[test]
fn before_any_measurement_a_batch_is_cut_into_a_few() {
    let pace = |tokens| Pacer::default().pace(tokens);
    assert_eq!(pace(2048), Pace { micro_batch_tokens: 512, in_flight: 4 });
    assert_eq!(pace(10).micro_batch_tokens, 128);
    assert_eq!(pace(1 << 20).micro_batch_tokens, 1024);
    assert!(pace(0).micro_batch_tokens > 0);
}

#[test]
fn two_equal_hops_idle_less_than_15_percent_of_a_step() {
    let swarm = Swarm::new(&[line(0.002, 1e-4), line(0.002, 1e-4)], LAN);
    let (mut pacer, tokens) = (Pacer::default(), 8192);
    let pace = swarm.settle(&mut pacer, tokens, 8);
    assert!(swarm.efficiency(tokens, pace) > 0.85, "{pace:?}");
    assert!(pace.in_flight >= 3, "{pace:?}");
}

#[test]
fn hops_that_share_a_machine_are_not_cut_for_a_pipeline_that_is_none() {
    let hop = line(0.02, 1e-4);
    let swarm = Swarm::new(&[hop, hop], line(0.001, 1e-8));
    // Both hops compute on the same cores, so nothing overlaps and every part costs its fixed time.
    let seconds = |parts: usize| 2.0 * (parts as f64 * hop.fixed + hop.per_token * 2048.0);
    let shared = swarm.settle_where(&mut Pacer::default(), 2048, 12, seconds);
    let apart = swarm.settle(&mut Pacer::default(), 2048, 12);
    assert!(shared.micro_batch_tokens >= 1024 && apart.micro_batch_tokens < 1024, "{shared:?} and {apart:?}");
}

#[test]
fn one_hop_is_given_large_micro_batches_and_many_hops_small_ones() {
    let hop = line(0.01, 1e-4);
    let parts = |hops: usize| {
        let swarm = Swarm::new(&vec![hop; hops], line(0.001, 1e-8));
        8192 / swarm.settle(&mut Pacer::default(), 8192, 10).micro_batch_tokens
    };
    assert!(parts(1) <= 4, "nothing is won by cutting: {}", parts(1));
    assert!(parts(2) < parts(8), "{} and {}", parts(2), parts(8));
}

#[test]
fn a_long_way_is_covered_by_more_micro_batches_not_by_larger_ones() {
    let hops = [line(0.001, 1e-4), line(0.001, 1e-4)];
    let (near, far) = (Swarm::new(&hops, LAN), Swarm::new(&hops, line(0.4, 1e-6)));
    let settle = |swarm: &Swarm| swarm.settle(&mut Pacer::default(), 8192, 10);
    let (near, far) = (settle(&near), settle(&far));
    assert!(far.in_flight > near.in_flight, "{near:?} and {far:?}");
    assert!(far.micro_batch_tokens <= 2 * near.micro_batch_tokens, "{near:?} and {far:?}");
    assert!(IN_FLIGHT.contains(&far.in_flight));
}

#[test]
fn a_slow_link_and_one_hop_work_at_the_same_time() {
    let swarm = Swarm::new(&[line(0.001, 1e-4)], line(0.1, 2e-4));
    let pace = swarm.settle(&mut Pacer::default(), 4096, 10);
    assert!(4096 / pace.micro_batch_tokens >= 4 && pace.in_flight >= 3, "{pace:?}");
}

#[test]
fn whatever_is_measured_the_pace_stays_within_its_bounds() {
    let lines = [line(0.0, 0.0), line(100.0, 0.0), line(0.0, 10.0), line(0.0, 1e-12)];
    for hop in lines {
        for rest in lines {
            let swarm = Swarm::new(&[hop, hop, hop], rest);
            let mut pacer = Pacer::default();
            for tokens in [1, 100, 5000, 1_000_000] {
                let pace = swarm.settle(&mut pacer, tokens, 3);
                assert!(IN_FLIGHT.contains(&pace.in_flight), "{pace:?}");
                assert!(pace.micro_batch_tokens >= 1 && pace.micro_batch_tokens <= *TOKENS.end(), "{pace:?}");
            }
        }
    }
    let mut pacer = Pacer::default();
    pacer.record(&Measured { tokens: 0, hops: Vec::new(), cycle: Duration::ZERO });
    assert_eq!(pacer.pace(2048).in_flight, FIRST_IN_FLIGHT);
}

#[test]
fn another_route_is_measured_anew() {
    let (slow, quick) = (Swarm::new(&[line(0.5, 1e-3)], LAN), Swarm::new(&[line(0.0, 1e-6); 3], LAN));
    let mut pacer = Pacer::default();
    slow.settle(&mut pacer, 4096, 5);
    quick.settle(&mut pacer, 4096, OTHERS);
    let seconds = Pipeline::of(&pacer).seconds(4096, 4);
    assert!(seconds < 0.1, "nothing of the slow one is left: {seconds}");
}

#[test]
fn a_line_is_found_from_two_sizes() {
    let mut samples = Samples::default();
    let truth = line(0.02, 1e-4);
    assert_eq!(samples.line(), Line::default());
    samples.add(512, truth.at(512.0));
    assert_eq!(samples.line().fixed, 0.0);
    samples.add(128, truth.at(128.0));
    let found = samples.line();
    assert!((found.fixed - 0.02).abs() < 1e-9 && (found.per_token - 1e-4).abs() < 1e-12, "{found:?}");
}
