use std::sync::Arc;
use std::time::Duration;

use petals_protocol::{Injection, SessionId};

use super::*;
use crate::executor::Tables;
use crate::executor::stash::StashPolicy;
use crate::fixture;
use crate::machine::rooms::Rooms;

const STREAM: u64 = 3;

fn someone() -> Party {
    Party::unplaced(petals_swarm::PeerId::random())
}

struct Server {
    compute: Compute<'static>,
    store: Mutex<SessionStore>,
    prefixes: Mutex<Prefixes>,
    /// Who opens sessions.
    party: Party,
    next: u64,
}

impl Server {
    /// Its budget for prefixes is `budget`.
    fn new(budget: u64) -> Self {
        let mut store = SessionStore::new(1 << 30, Duration::from_secs(60));
        store.open_stream(STREAM);
        let blocks = Arc::new(fixture::stack());
        let (rooms, policy) = (Rooms::default(), StashPolicy::Auto);
        let compute = Compute { blocks, rooms, pass_bytes: 1 << 30, policy, pause: &|| (), ahead: usize::MAX };
        Self {
            compute,
            store: Mutex::new(store),
            prefixes: Mutex::new(Prefixes::new(budget, false)),
            party: someone(),
            next: 0,
        }
    }

    fn hidden(&self) -> usize {
        self.compute.blocks.config().hidden_size
    }

    /// Opens a session with `text`.
    fn open(&mut self, injection: Injection, text: &[f32], read: Option<Vec<u32>>) -> (SessionKey, Stepped) {
        self.next += 1;
        let (d, span) = (self.hidden(), self.compute.blocks.span());
        let tokens = (text.len() / d) as u32;
        let layout = PassLayout {
            span,
            lengths: vec![tokens],
            prefix_len: 3,
            injection,
            weights: Default::default(),
            read_rows: read,
        };
        let tables = layout.has_tables().then(|| Tables::new(values(2, span.len() * 3 * d)));
        let prefix = layout.carries_prefix().then(|| values(1, 3 * d));
        let key = (STREAM, SessionId(self.next));
        let limits = SessionOpen { max_sequences: 1, max_positions: 400 };
        let inputs = Inputs { text: text.to_vec(), prefix, tables };
        let starts = vec![0];
        (key, self.step(Step { key, party: self.party, layout, inputs, starts, order: None, open: Some(limits) }))
    }

    /// A row behind the first `start`.
    fn next(&mut self, key: SessionKey, start: u32, row: &[f32]) -> Vec<f32> {
        let span = self.compute.blocks.span();
        let layout = PassLayout {
            span,
            lengths: vec![1],
            prefix_len: 0,
            injection: Injection::None,
            weights: Default::default(),
            read_rows: None,
        };
        let inputs = Inputs { text: row.to_vec(), prefix: None, tables: None };
        let (party, starts) = (someone(), vec![start]);
        self.step(Step { key, party, layout, inputs, starts, order: None, open: None }).text
    }

    fn step(&mut self, step: Step) -> Stepped {
        let results = run(&self.compute, &self.store, &self.prefixes, vec![step]);
        results.into_iter().next().unwrap().unwrap()
    }
}

fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|n| ((n + 31 * seed) as f32 * 0.7).sin()).collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-4, "{what}: {worst}");
}

#[test]
fn texts_that_begin_like_others_give_what_they_would_alone() {
    for injection in [Injection::Replace, Injection::Add] {
        let (mut shared, mut fresh) = (Server::new(1 << 30), Server::new(0));
        let d = shared.hidden();
        let common = values(7, 150 * d);
        let text = |seed: usize, rows: usize| [common.clone(), values(seed, rows * d)].concat();
        // All rows are read, as in front of another server, or the last one alone.
        for (number, (seed, rows, last_only)) in
            [(20, 30, false), (21, 50, false), (22, 5, true), (20, 40, false), (23, 0, true)].into_iter().enumerate()
        {
            let text = text(seed, rows);
            let tokens = (text.len() / d) as u32;
            let read = last_only.then(|| vec![tokens - 1]);
            let (mut got, mut expected) = (Vec::new(), Vec::new());
            let mut keys = Vec::new();
            for (server, outputs) in [(&mut shared, &mut got), (&mut fresh, &mut expected)] {
                let (key, stepped) = server.open(injection, &text, read.clone());
                outputs.extend(stepped.text);
                outputs.extend(stepped.prefix.unwrap_or_default());
                keys.push(key);
            }
            let what = format!("{injection:?}, text {number}");
            assert_close(&what, &got, &expected);
            // What follows sees the whole text, also after a part of the common beginning was taken back.
            for start in [tokens, 100] {
                let row = values(start as usize, d);
                let (got, expected) = (shared.next(keys[0], start, &row), fresh.next(keys[1], start, &row));
                assert_close(&format!("{what}, after {start}"), &got, &expected);
            }
        }
        assert_eq!(lock(&fresh.prefixes).len(), 0);
        assert!(lock(&shared.prefixes).len() > 2, "the adapter's rows and two pages at least");
    }
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let mut server = Server::new(1 << 30);
    let d = server.hidden();
    let text = values(7, 150 * d);
    server.open(Injection::Replace, &text, None);
    let span = server.compute.blocks.span();
    let tables = values(2, span.len() * 3 * d);
    let injection = Injection::Replace;
    let layout = |prefix_len, injection| PassLayout {
        span,
        lengths: vec![1],
        prefix_len,
        injection,
        weights: WeightChange::None,
        read_rows: None,
    };
    let key = PrefixKey::new(&layout(3, injection), None, Some(&tables), false);
    let key = lock(&server.prefixes).key(key, server.party.peer, SessionId(0));
    let bare = PrefixKey::new(&layout(0, Injection::None), None, None, false);
    let known = |text: &[f32], read| lock(&server.prefixes).opening(key, text, d, read).map(|found| found.rows);
    assert_eq!(known(&text, 0), Some(128));
    assert_eq!(known(&text[..128 * d], 0), Some(64), "one row at least is left");
    assert_eq!(known(&text[d..], 0), None);
    let other = [&text[..100 * d], &values(9, 60 * d)].concat();
    assert_eq!(known(&other, 0), Some(64));
    assert_eq!(lock(&server.prefixes).opening(bare, &text, d, 0).map(|o| o.rows), None);
}

#[test]
fn what_one_peer_began_with_is_not_there_for_another() {
    let salted = |salt| SessionId::salted(salt, 1 << 20);
    // Whether peers share, whether another one comes second, the salts of both sessions, and whether the second one has pages of the first.
    for (shared, other, salts, known) in [
        (false, false, [0, 0], true),
        (false, true, [0, 0], false),
        (false, false, [1, 2], false),
        (false, false, [2, 2], true),
        (true, true, [0, 0], true),
        (true, true, [1, 1], false),
        (true, false, [1, 0], false),
    ] {
        let mut server = Server::new(1 << 30);
        server.prefixes = Mutex::new(Prefixes::new(1 << 30, shared));
        let text = values(7, 150 * server.hidden());
        let mut new_bytes = [0, 0];
        for (new, salt) in new_bytes.iter_mut().zip(salts) {
            server.next = salted(salt).0 + server.next % 100;
            let before = lock(&server.prefixes).meter().bytes();
            server.open(Injection::Replace, &text, None);
            *new = lock(&server.prefixes).meter().bytes() - before;
            if other {
                server.party = someone();
            }
        }
        let [first, second] = new_bytes;
        assert!(if known { second < first / 2 } else { second == first }, "{shared} {other} {salts:?}: {new_bytes:?}");
    }
}

#[test]
fn a_small_budget_keeps_the_newest() {
    let mut server = Server::new(0);
    let d = server.hidden();
    let blocks = server.compute.blocks.clone();
    let page = blocks.kv_page_bytes(blocks.span());
    server.prefixes = Mutex::new(Prefixes::new(3 * (page + 4 * (PAGE_TOKENS * d) as u64), false));
    for seed in 0..10 {
        server.open(Injection::Replace, &values(seed, 140 * d), None);
    }
    assert!(lock(&server.prefixes).bytes() <= 3 * (page + 4 * (PAGE_TOKENS * d) as u64));
    assert!((1..=4).contains(&lock(&server.prefixes).len()), "{}", lock(&server.prefixes).len());
}

#[test]
fn an_opening_that_is_refused_for_memory_leaves_no_session() {
    let mut server = Server::new(0);
    let d = server.hidden();
    // Enough for the rows of the step, and not for what they attend to.
    let layout = |tokens: u32| PassLayout {
        span: server.compute.blocks.span(),
        lengths: vec![tokens],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let (asked, size) = (layout(200), StepSize { new: 200, kept: 0, weights: WeightChange::None });
    let rows = server.compute.blocks.activation_bytes_estimate(&asked);
    let step = server.compute.blocks.step_bytes_estimate(&[size]);
    server.compute.pass_bytes = rows.max(step - 1).min(step - 1);
    let key = (STREAM, SessionId(1));
    let inputs = Inputs { text: values(1, 200 * d), prefix: None, tables: None };
    let open = Some(SessionOpen { max_sequences: 1, max_positions: 400 });
    let step = Step { key, party: someone(), layout: asked, inputs, starts: vec![0], order: None, open };
    let refused = run(&server.compute, &server.store, &server.prefixes, vec![step]).remove(0);
    assert!(matches!(refused, Err(Refusal::TooLarge { .. })), "{refused:?}");
    let store = lock(&server.store);
    assert_eq!((store.len(), store.bytes()), (0, 0));
}
