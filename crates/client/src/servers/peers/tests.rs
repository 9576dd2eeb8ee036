use super::*;
use petals_protocol::{Fingerprint, ModelId, ServerInfo, ServerState, Span};

pub(super) fn info() -> ServerInfo {
    let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
    ServerInfo::new(model, Span::new(0, 4).unwrap(), ServerState::Online)
}

fn measured(rows: usize, elapsed: u64, computed: u64, queued: u64) -> Measurement {
    let ms = Duration::from_millis;
    let (elapsed, computed, queued) = (ms(elapsed), ms(computed), ms(queued));
    Measurement { rows, blocks: 4, bytes: 1, elapsed, computed, queued, handed: Duration::ZERO }
}

pub(super) const PASS: PassSize = PassSize { rows: 10, bytes: 1000 };

fn close(figure: Figure, value: f64, source: Source) -> bool {
    (figure.value - value).abs() < 1e-9 * value.max(1.0) && figure.source == source
}

#[test]
fn bans_apply_at_once_double_and_end_with_a_success() {
    let (table, peer, mut now) = (PeerTable::default(), PeerId::random(), Instant::now());
    assert!(table.ban(peer, now).is_none());
    let first = table.failed(peer, now);
    assert!(table.ban(peer, now).is_some() && table.ban(peer, now + first).is_none());
    assert_eq!(table.failed(peer, now + first / 2), first / 2, "a second failure during the ban is the same one");
    now += first;
    assert_eq!(table.failed(peer, now), first * 2);
    for _ in 0..100 {
        now += LONGEST_BAN;
        assert!(table.failed(peer, now) <= LONGEST_BAN);
    }
    table.succeeded(peer, measured(1, 1, 1, 0));
    assert!(table.ban(peer, now).is_none());
    assert_eq!(table.failed(peer, now), first);
}

#[test]
fn estimates_go_from_what_is_usual_over_announcements_to_measurements() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    let unknown = table.estimate(peer, &info(), PASS, 0);
    assert!(close(unknown.block_seconds, 10.0 * 50e-6, Source::Assumed));
    let announced = ServerInfo {
        forward_tokens_per_s: Some(1000.0),
        decode_tokens_per_s: Some(50.0),
        network_bytes_per_s: Some(1e6),
        queue_depth: 3,
        ..info()
    };
    let cost = table.estimate(peer, &announced, PASS, 1);
    assert!(close(cost.block_seconds, 10.0 / 4000.0, Source::Announced), "{cost:?}");
    assert!(close(cost.queue_seconds, 2.0 * 4.0 * 10.0 / 4000.0, Source::Announced), "one of three is its own");
    assert!((cost.transfer_seconds(1000) - 1e-3).abs() < 1e-12);
    let one_row = PassSize { rows: 1, bytes: 100 };
    assert!(close(table.estimate(peer, &announced, one_row, 0).block_seconds, 1.0 / 200.0, Source::Announced));
    table.succeeded(peer, measured(10, 30, 20, 3));
    let cost = table.estimate(peer, &announced, PASS, 0);
    assert!(close(cost.block_seconds, 0.005, Source::Measured) && close(cost.queue_seconds, 0.003, Source::Measured));
    table.succeeded(peer, measured(1, 30, 8, 0));
    assert!(close(table.estimate(peer, &announced, one_row, 0).block_seconds, 0.002, Source::Measured));
    assert!(close(table.estimate(peer, &announced, PASS, 0).block_seconds, 0.005, Source::Measured));
}

#[test]
fn one_slow_ping_changes_nothing() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    let round_trip = |table: &PeerTable| table.estimate(peer, &info(), PASS, 0).round_trip_seconds;
    let usual = round_trip(&table);
    table.pinged(peer, Duration::from_millis(400));
    assert_eq!(round_trip(&table), usual, "it may have waited behind a handshake");
    table.pinged(peer, Duration::from_millis(2));
    assert!(close(round_trip(&table), 0.002, Source::Measured));
    table.pinged(peer, Duration::from_millis(300));
    assert!(close(round_trip(&table), 0.002, Source::Measured));
    (0..8).for_each(|more| table.pinged(peer, Duration::from_millis(301 + more)));
    assert!(close(round_trip(&table), 0.301, Source::Measured), "the way has become longer");
}

#[test]
fn a_way_through_a_relay_costs_more() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    let seconds = |relayed| table.estimate(peer, &ServerInfo { relayed, ..info() }, PASS, 0).seconds(4, PASS);
    assert!(seconds(true) > seconds(false) + 0.02);
}

#[test]
fn a_busy_server_counts_as_slower_until_it_answers() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    table.busy(peer, Duration::from_millis(700), Instant::now());
    assert!(close(table.estimate(peer, &info(), PASS, 0).queue_seconds, 0.7, Source::Announced));
    table.busy(peer, Duration::from_millis(700), Instant::now());
    assert!(close(table.estimate(peer, &info(), PASS, 0).queue_seconds, 1.4, Source::Announced));
    table.succeeded(peer, measured(10, 5, 5, 0));
    assert!(table.estimate(peer, &info(), PASS, 0).queue_seconds.value < 1e-9);
}

#[test]
fn usual_waits_grow_with_the_rows_but_do_not_shrink() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    assert_eq!(table.usual_wait(peer, 10), None);
    [2, 4].into_iter().for_each(|seconds| table.waited(peer, 10, Duration::from_secs(seconds)));
    assert_eq!([1, 10, 20].map(|rows| table.usual_wait(peer, rows)), [Some(3.0), Some(3.0), Some(6.0)]);
}

#[test]
fn a_server_that_claims_more_time_than_passed_is_not_believed() {
    let (table, peer) = (PeerTable::default(), PeerId::random());
    table.succeeded(peer, measured(10, 10, 1_000_000, 1_000_000));
    let cost = table.estimate(peer, &info(), PASS, 0);
    assert!(close(cost.block_seconds, 0.01 / 4.0, Source::Measured) && cost.queue_seconds.value < 1e-9);
}

#[test]
fn whoever_claims_to_take_no_time_pays_for_what_was_waited() {
    let (table, liar, honest) = (PeerTable::default(), PeerId::random(), PeerId::random());
    let queue = |peer| table.estimate(peer, &info(), PASS, 0).queue_seconds.value;
    for peer in [liar, honest] {
        (1..4).for_each(|ping| table.pinged(peer, Duration::from_millis(ping)));
    }
    for wait in [905, 903, 950] {
        table.succeeded(liar, measured(1, wait, 0, 0));
        table.succeeded(honest, measured(1, wait, 900, 0));
    }
    assert!(queue(liar) > 0.88, "{}", queue(liar));
    assert!(queue(honest) < 1e-9, "its blocks are charged: {}", queue(honest));
    // A pause of the network or of a processor is no lie.
    table.succeeded(honest, measured(1, 1900, 5, 0));
    assert!(queue(honest) < 1e-9);
    // Who is quick once more is believed again.
    table.succeeded(liar, measured(1, 8, 5, 0));
    assert!(queue(liar) < 1e-9);
}

#[test]
fn what_nobody_of_a_chain_accounts_for_is_charged_until_one_of_them_is_replaced() {
    let table = PeerTable::default();
    let [honest, liar, other] = [PeerId::random(), PeerId::random(), PeerId::random()];
    for peer in [honest, liar, other] {
        (1..4).for_each(|ping| table.pinged(peer, Duration::from_millis(ping)));
    }
    let queue = |peer| table.estimate(peer, &info(), PASS, 0).queue_seconds.value;
    let hop = |peer, computed| (peer, measured(1, computed, computed, 0));
    table.chained(&[hop(honest, 20), hop(liar, 0)], Duration::from_millis(925));
    // Which of the two it was nobody knows yet.
    assert!(queue(honest) > 0.4 && queue(liar) > 0.4);
    table.chained(&[hop(honest, 20), hop(other, 20)], Duration::from_millis(45));
    assert!(queue(honest) < 1e-9 && queue(other) < 1e-9 && queue(liar) > 0.4);
    table.chained(&[hop(honest, 20), hop(liar, 0)], Duration::from_millis(925));
    assert!(queue(honest) < 1e-9 && queue(liar) > 0.4, "who was on time is not doubted while somebody is who was not");
    // Passing rows on is no excuse for ever.
    let claimed = believed_handover(Duration::from_secs(5), 4096);
    assert!(claimed < Duration::from_millis(200), "{claimed:?}");
}

#[test]
fn with_many_who_are_late_whoever_is_on_time_is_found_soon() {
    let (table, late) = (PeerTable::default(), Duration::from_millis(900));
    let spans: [Vec<PeerId>; 2] = std::array::from_fn(|_| (0..7).map(|_| PeerId::random()).collect());
    let is_honest = |peer: &PeerId| spans.iter().any(|span| span[6..].contains(peer));
    // The late ones say that they are faster, and everybody's queue is what they are charged.
    let cost = |peer: &PeerId| {
        let charged = table.estimate(*peer, &info(), PASS, 0).queue_seconds.value;
        charged + if is_honest(peer) { 0.05 } else { 0.0 }
    };
    let mut passes = 0;
    loop {
        let chain = spans.each_ref().map(|span| *span.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap());
        if chain.iter().all(is_honest) {
            break;
        }
        passes += 1;
        assert!(passes < 20, "nobody who is on time is found");
        // As micro-batches do that are on their way at the same time, an honest one stands in for each of them in turn.
        for place in 0..2 {
            let mixed: Vec<_> = (0..2)
                .map(|at| if at == place { spans[at][6] } else { chain[at] })
                .map(|peer| (peer, measured(1, 20, 20, 0)))
                .collect();
            let slow = mixed.iter().filter(|(peer, _)| !is_honest(peer)).count() as u32;
            table.chained(&mixed, Duration::from_millis(45) + late * slow);
        }
        let slow = chain.iter().filter(|peer| !is_honest(peer)).count() as u32;
        table.chained(&chain.map(|peer| (peer, measured(1, 20, 20, 0))), Duration::from_millis(45) + late * slow);
    }
}

#[test]
fn whom_strangers_outvote_is_passed_over_for_a_time_and_not_for_ever() {
    let (table, peer, now) = (PeerTable::default(), PeerId::random(), Instant::now());
    table.suspend(peer, now);
    table.succeeded(peer, measured(1, 1, 1, 0));
    assert!(table.ban(peer, now).is_some() && !table.is_untrue(peer), "a success does not end it");
    assert!(table.ban(peer, now + SUSPENSION).is_none());
    assert!(table.found_wrong_since(peer, now) && !table.found_wrong_since(peer, now + Duration::from_millis(1)));
    (0..50).for_each(|_| table.suspend(peer, now));
    assert!(table.ban(peer, now + LONGEST_SUSPENSION).is_none());
}

#[test]
fn distances_between_servers_are_half_a_ping_and_the_transfer() {
    let info = ServerInfo { network_bytes_per_s: Some(1e6), ..info() };
    let cost = PeerTable::default().estimate(PeerId::random(), &info, PASS, 0);
    assert!((cost.next_way(8.0, PASS) - 0.005).abs() < 1e-9);
}
