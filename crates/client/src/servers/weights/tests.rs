use petals_protocol::BlockHashes;

use super::*;

fn model() -> ModelId {
    "m@0000000000000001".parse().unwrap()
}

fn hash(copy: u8, block: u32) -> WeightsHash {
    WeightsHash([copy, block as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// A server of a copy on some host; copy 0 says nothing.
fn server(host: u8, (start, end): (u32, u32), copy: u8) -> DirectoryEntry {
    let mut info = ServerInfo::new(model(), span(start, end), ServerState::Online);
    info.weights =
        (copy > 0).then(|| BlockHashes::new((start..end).map(|block| hash(copy, block)).collect(), 8).unwrap());
    let addresses = vec![format!("/ip4/203.0.113.{host}/tcp/1").parse().unwrap()];
    DirectoryEntry { peer: PeerId::random(), info, addresses }
}

fn used(weights: &Weights, servers: &[DirectoryEntry]) -> Vec<bool> {
    weights.learn(servers.iter());
    servers.iter().map(|server| weights.exclusion(&server.info).is_none()).collect()
}

fn majority() -> Weights {
    Weights::new(span(0, 4), None)
}

#[test]
fn whoever_agrees_is_used_and_nobody_is_told_of() {
    let servers = [server(1, (0, 2), 1), server(2, (1, 4), 1), server(3, (0, 4), 0)];
    let weights = majority();
    assert_eq!(used(&weights, &servers), [true; 3]);
    assert_eq!(weights.news(), None);
}

#[test]
fn one_copy_is_used_the_others_are_told_of_once() {
    let servers = [server(1, (0, 4), 2), server(2, (0, 3), 1), server(3, (2, 4), 1), server(4, (0, 1), 1)];
    let weights = majority();
    assert_eq!(used(&weights, &servers), [false, true, true, true]);
    assert_eq!(weights.news(), Some(vec![servers[0].peer]));
    assert_eq!((used(&weights, &servers), weights.news()), (vec![false, true, true, true], None));
}

#[test]
fn copies_are_not_mixed_where_each_has_the_majority_of_some_blocks() {
    // Block by block the first two would have 0..2 and the others 2..4.
    let servers = [server(1, (0, 2), 1), server(2, (0, 3), 1), server(3, (1, 4), 2), server(4, (2, 4), 2)];
    let with_whole = [&servers[..], &[server(5, (0, 4), 1)]].concat();
    assert_eq!(used(&majority(), &with_whole), [true, true, false, false, true]);
}

#[test]
fn many_peers_of_one_network_are_one_voice() {
    let mut servers: Vec<DirectoryEntry> = (0..20).map(|_| server(9, (0, 4), 2)).collect();
    servers.extend([server(1, (0, 4), 1), server(2, (0, 4), 1)]);
    let found = used(&majority(), &servers);
    assert_eq!((found[..20].contains(&true), &found[20..]), (false, &[true, true][..]));
}

#[test]
fn a_copy_that_covers_everything_goes_before_one_that_more_have() {
    let servers = [server(1, (0, 2), 1), server(2, (0, 2), 1), server(3, (0, 4), 2)];
    assert_eq!(used(&majority(), &servers), [false, false, true]);
}

#[test]
fn what_was_used_stays_whoever_comes() {
    let mut servers = vec![server(1, (0, 2), 1), server(2, (2, 4), 1)];
    let weights = majority();
    assert_eq!(used(&weights, &servers), [true, true]);
    weights.used();
    servers.extend([server(3, (0, 4), 2), server(4, (0, 4), 2), server(5, (0, 4), 2)]);
    assert_eq!(used(&weights, &servers), [true, true, false, false, false]);
    // Even if it is all that is left: a run does not go on with another model.
    assert_eq!(used(&weights, &servers[2..]), [false; 3]);
    assert_eq!(used(&majority(), &servers[2..]), [true; 3]);
}

#[test]
fn given_hashes_count_alone() {
    let known = KnownWeights::new(model(), (0..4).map(|block| hash(2, block)).collect());
    let text = known.to_string();
    let read = KnownWeights::parse(&format!("# of a friend\n\n{text}"), &model(), span(0, 4));
    assert_eq!(read.unwrap(), known);
    let servers = [server(1, (0, 4), 1), server(2, (0, 4), 1), server(3, (1, 3), 2), server(4, (0, 4), 0)];
    let weights = Weights::new(span(0, 4), Some(&known));
    assert_eq!(used(&weights, &servers), [false, false, true, false]);
    assert_eq!(weights.exclusion(&servers[3].info), Some(Exclusion::UnnamedWeights));
}

#[test]
fn known_hashes_are_compared_with_what_servers_of_many_blocks_have_room_for() {
    let hash = |copy: u8, block: u32| WeightsHash(std::array::from_fn(|at| copy + at as u8 + block as u8 % 7));
    let known = KnownWeights::new(model(), (0..400).map(|block| hash(2, block)).collect());
    let server = |start: u32, end: u32, copy: u8| {
        let mut info = ServerInfo::new(model(), span(start, end), ServerState::Online);
        info.weights = BlockHashes::new((start..end).map(|block| hash(copy, block)).collect(), 400);
        DirectoryEntry { peer: PeerId::random(), info, addresses: Vec::new() }
    };
    let servers = [server(0, 400, 2), server(10, 20, 2), server(0, 400, 3), server(399, 400, 3)];
    assert!(servers.iter().all(|server| server.info.weights.is_some()));
    for weights in [Weights::new(span(0, 400), Some(&known)), Weights::new(span(0, 400), None)] {
        assert_eq!(used(&weights, &servers), [true, true, false, false]);
    }
}

#[test]
fn files_of_hashes_that_say_something_else_are_explained() {
    let good = KnownWeights::new(model(), vec![hash(1, 0), hash(1, 1)]).to_string();
    let parse = |text: &str| KnownWeights::parse(text, &model(), span(0, 2));
    assert!(parse(&good).is_ok());
    let last = good.lines().last().unwrap();
    let first = parse(good.strip_suffix(&format!("{last}\n")).unwrap());
    assert!(matches!(first, Err(KnownWeightsError::Missing(1))), "{first:?}");
    let line = |text: &str| match parse(text) {
        Err(KnownWeightsError::Line { line, .. }) => line,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(line(&format!("{good}1 123")), 4);
    assert_eq!(line(&format!("{good}1 {}", hash(2, 1))), 4);
    assert_eq!(line(&format!("2 {}", hash(1, 2))), 1);
    assert_eq!(line("nonsense"), 1);
    let other = parse(&good.replace("0001", "0002"));
    assert!(matches!(other, Err(KnownWeightsError::OtherModel { .. })), "{other:?}");
}
