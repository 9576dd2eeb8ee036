//! What a node did, counted for its operator.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use petals_protocol::Refusal;
use petals_swarm::PeerId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::pass::{Pass, Work};
use crate::lock::lock;

/// Peers that are told apart in one period.
const MOST_PEERS: usize = 4096;

/// What passes do.
const KINDS: [&str; 4] = ["forward", "keys_values", "backward", "step"];
/// Refusals that are remembered one by one.
const MOST_REFUSALS: usize = 32;

/// What a pass takes of a node whose hidden states are so wide, in rows times blocks of a forward. A backward costs about as much as a forward. Attention is
/// counted: a row that attends to six times as many positions as the hidden states are wide costs twice as much as one that attends to none.
pub(super) fn cost(pass: &Pass, hidden: usize) -> u64 {
    let layout = &pass.layout;
    let (passes, starts) = match &pass.work {
        Work::Backward { stash: None, .. } => (2, None),
        Work::Step { starts, .. } => (1, Some(starts)),
        _ => (1, None),
    };
    let prefix = layout.prefix_rows() as u64;
    let attended = layout.lengths.iter().enumerate().map(|(number, &length)| {
        let start = starts.and_then(|starts| starts.get(number)).copied().unwrap_or(0);
        u64::from(length).saturating_mul(prefix + u64::from(start) + u64::from(length) / 2)
    });
    let attention = attended.fold(0, u64::saturating_add) / (6 * hidden.max(1)) as u64;
    let rows = layout.tokens() as u64 + prefix;
    rows.saturating_add(attention).saturating_mul(passes * layout.span.len() as u64)
}

/// Work since it was last asked for, and since the start.
#[derive(Debug, Default)]
pub(super) struct WorkDone {
    period: Mutex<(WorkCount, HashSet<PeerId>)>,
    totals: Totals,
    /// The latest refusals, the last one at the end.
    refusals: Mutex<VecDeque<Refused>>,
}

/// What there was of each kind.
pub(crate) type ByKind = Family<[(&'static str, &'static str); 1], Counter>;

/// Work since the start. Clones are of the same figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// Passes that were taken on, by what they do.
    pub(crate) passes: ByKind,
    /// Tokens that they brought to this node's blocks, on their way forward.
    pub(crate) tokens: Counter,
    /// Time in which the blocks computed, in microseconds.
    pub(crate) busy_us: Counter,
    /// Requests that were not served, by the reason.
    pub(crate) refusals: ByKind,
}

impl Totals {
    /// Passes of all kinds.
    pub(crate) fn number(&self) -> u64 {
        KINDS.iter().map(|kind| self.passes.get(&[("kind", *kind)]).map_or(0, |count| count.get())).sum()
    }
}

/// Requests of a peer that were not served, for one reason.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) peer: PeerId,
    pub(crate) what: String,
    /// When the last one was.
    pub(crate) at: SystemTime,
    /// How many in a row.
    pub(crate) times: u64,
}

/// Work of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkCount {
    /// Requests that were taken on.
    pub requests: u64,
    /// Tokens that they brought to this node's blocks, on their way forward.
    pub tokens: u64,
    /// Peers that they came from.
    pub clients: usize,
}

/// What a pass adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    peer: PeerId,
    tokens: u64,
    kind: &'static str,
}

impl Share {
    pub(super) fn of(pass: &Pass) -> Self {
        let kind = match pass.work {
            Work::Forward { .. } => "forward",
            Work::KeysValues { .. } => "keys_values",
            Work::Backward { .. } => "backward",
            Work::Step { .. } => "step",
        };
        let forward = !matches!(pass.work, Work::Backward { .. });
        Self { peer: pass.party.peer, tokens: if forward { pass.layout.tokens() as u64 } else { 0 }, kind }
    }
}

impl WorkDone {
    pub(super) fn add(&self, share: Share) {
        self.totals.passes.get_or_create(&[("kind", share.kind)]).inc();
        self.totals.tokens.inc_by(share.tokens);
        let mut done = lock(&self.period);
        let (count, peers) = &mut *done;
        count.requests += 1;
        count.tokens += share.tokens;
        if peers.len() < MOST_PEERS {
            peers.insert(share.peer);
        }
    }

    /// The work since the last time.
    pub(super) fn take(&self) -> WorkCount {
        let (count, peers) = std::mem::take(&mut *lock(&self.period));
        WorkCount { clients: peers.len(), ..count }
    }

    /// The blocks computed for so long.
    pub(super) fn computed(&self, time: Duration) {
        self.totals.busy_us.inc_by(time.as_micros() as u64);
    }

    /// A request of `peer` was not served.
    pub(super) fn refused(&self, peer: PeerId, refusal: &Refusal) {
        self.totals.refusals.get_or_create(&[("reason", refusal.name())]).inc();
        // What it is about may be a stranger's words: the kind is enough, and equal ones are counted.
        let what = format!("was refused: {}", refusal.name().replace('_', " "));
        let mut refusals = lock(&self.refusals);
        if let Some(last) = refusals.back_mut().filter(|last| last.peer == peer && last.what == what) {
            (last.at, last.times) = (SystemTime::now(), last.times.saturating_add(1));
            return;
        }
        if refusals.len() >= MOST_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(Refused { peer, what, at: SystemTime::now(), times: 1 });
    }

    /// The latest refusals, the last one first.
    pub(super) fn refusals(&self) -> Vec<Refused> {
        lock(&self.refusals).iter().rev().cloned().collect()
    }

    /// Work since the start.
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::pass::Inputs;
    use petals_protocol::SessionId;
    use petals_swarm::Party;

    #[test]
    fn each_period_counts_for_itself() {
        let done = WorkDone::default();
        let (one, two) = (PeerId::random(), PeerId::random());
        for (peer, tokens) in [(one, 5), (two, 1), (one, 0)] {
            done.add(Share { peer, tokens, kind: "step" });
        }
        assert_eq!(done.take(), WorkCount { requests: 3, tokens: 6, clients: 2 });
        assert_eq!(done.take(), WorkCount::default());
        let steps = done.totals().passes.get_or_create(&[("kind", "step")]).get();
        assert_eq!((steps, done.totals().tokens.get()), (3, 6), "since the start");
    }

    #[test]
    fn refusals_are_counted_by_reason_and_remembered_up_to_a_bound() {
        let done = WorkDone::default();
        let (one, two) = (PeerId::random(), PeerId::random());
        for _ in 0..3 {
            done.refused(one, &Refusal::Busy { retry_after_ms: 1 });
        }
        done.refused(one, &Refusal::BadRequest { what: "\u{1b}[2J".into() });
        let last = done.refusals();
        assert_eq!((last.len(), last[1].times, last[0].what.as_str()), (2, 3, "was refused: bad request"));
        assert_eq!(done.totals().refusals.get_or_create(&[("reason", "busy")]).get(), 3);
        for peer in [one, two].into_iter().cycle().take(3 * MOST_REFUSALS) {
            done.refused(peer, &Refusal::Draining);
        }
        assert_eq!(done.refusals().len(), MOST_REFUSALS);
    }

    #[test]
    fn attention_and_repeated_forwards_cost_too() {
        let layout = |lengths: &[u32]| petals_protocol::PassLayout {
            span: petals_protocol::Span::new(0, 4).unwrap(),
            lengths: lengths.to_vec(),
            prefix_len: 0,
            injection: petals_protocol::Injection::None,
            weights: Default::default(),
            read_rows: None,
        };
        let inputs = || Inputs { text: Vec::new(), prefix: None, tables: None };
        let cost = |lengths: &[u32], work: Work| {
            let (party, now) = (Party::unplaced(PeerId::random()), std::time::Instant::now());
            cost(
                &Pass { party, stream: 1, layout: layout(lengths), work, rounded: false, arrived: now, deadline: now },
                100,
            )
        };
        let forward = || Work::Forward { inputs: inputs(), stash: None };
        assert_eq!(cost(&[10, 20], forward()), 4 * 30);
        // 1200 rows attend to 600 each, in 600 to a row's worth.
        assert_eq!(cost(&[1200], forward()), 4 * (1200 + 1200));
        let step = |start| Work::Step {
            inputs: inputs(),
            session: SessionId(1),
            starts: vec![start],
            order: None,
            open: None,
        };
        assert_eq!((cost(&[1], step(0)), cost(&[1], step(6000))), (4, 4 * 11));
        let grads = petals_model::OutputGrads { text: Vec::new(), prefix: None };
        let replay = Work::Backward { inputs: Some(inputs()), stash: None, grads, text_grad: true };
        assert_eq!(cost(&[10], replay), 2 * 4 * 10);
    }
}
