use super::*;
use crate::identity::Identity;
use crate::keys::block_key;
use crate::record::tests::info;

const TTL: Duration = Duration::from_secs(120);

fn record(identity: &Identity, span: (u32, u32), written_ms: u64) -> Record {
    let info = info(span, written_ms);
    let value = SignedRecord::seal(identity, &info, &[], TTL).unwrap();
    Record::new(server_key(&info.model, &identity.peer_id()), value)
}

fn store() -> DirectoryStore {
    DirectoryStore::new(PeerId::random())
}

impl DirectoryStore {
    fn put_record(&mut self, record: Record) -> Result<(), StoreError> {
        self.insert(record, Origin::Peer(self.local))
    }

    fn put_provider(&mut self, entry: ProviderRecord) -> Result<(), StoreError> {
        let origin = Origin::Peer(entry.provider);
        self.insert_provider(entry, origin)
    }
}

fn provider(block: u32, peer: PeerId) -> ProviderRecord {
    ProviderRecord::new(block_key(&"demo@0000000000000001".parse().unwrap(), block), peer, Vec::new())
}

fn blocks_of(store: &DirectoryStore, peer: PeerId) -> Vec<u32> {
    (0..16).filter(|block| store.providers(&provider(*block, peer).key).iter().any(|e| e.provider == peer)).collect()
}

#[test]
fn a_valid_record_is_kept_and_the_later_one_wins() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let (first, second) = (record(&server, (0, 4), now), record(&server, (2, 6), now + 1));
    store.put_record(first.clone()).unwrap();
    store.put_record(second.clone()).unwrap();
    assert_eq!(store.get(&first.key).unwrap().value, second.value);
    assert!(matches!(store.put_record(first), Err(StoreError::Stale)));
    store.put_record(second).expect("the same record again is no error");
    assert!(matches!(store.put_record(record(&server, (3, 6), now + 1)), Err(StoreError::Stale)));
}

#[test]
fn a_record_under_the_key_of_another_peer_or_model_is_refused() {
    let (mut store, server) = (store(), Identity::generate());
    let mut forged = record(&server, (0, 4), unix_ms());
    forged.key = server_key(&"demo@0000000000000001".parse().unwrap(), &PeerId::random());
    assert!(matches!(store.put_record(forged.clone()), Err(StoreError::WrongKey)));
    forged.key = server_key(&"other@0000000000000001".parse().unwrap(), &server.peer_id());
    assert!(matches!(store.put_record(forged.clone()), Err(StoreError::WrongKey)));
    assert!(store.put(forged).is_err() && store.records().next().is_none());
}

#[test]
fn stale_tampered_and_oversized_records_are_refused() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let old = record(&server, (0, 4), now - 1_000_000);
    assert!(matches!(store.put_record(old), Err(StoreError::Record(SignedRecordError::Expired))));
    let mut tampered = record(&server, (0, 4), now);
    *tampered.value.last_mut().unwrap() ^= 1;
    assert!(matches!(store.put_record(tampered), Err(StoreError::Record(SignedRecordError::Signature))));
    let mut long = record(&server, (0, 4), now);
    long.value.resize(1 << 20, 0);
    assert!(matches!(store.put_record(long), Err(StoreError::Record(SignedRecordError::TooLong(_)))));
}

#[test]
fn a_record_moves_the_providers_to_its_span() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let peer = server.peer_id();
    store.put_record(record(&server, (0, 8), now - 1)).unwrap();
    (0..8).for_each(|block| store.put_provider(provider(block, peer)).unwrap());
    store.put_record(record(&server, (2, 5), now)).unwrap();
    assert_eq!(blocks_of(&store, peer), [2, 3, 4]);
    let mut offline = info((2, 5), now + 1);
    offline.state = ServerState::Offline;
    let value = SignedRecord::seal(&server, &offline, &[], TTL).unwrap();
    store.put_record(Record::new(server_key(&offline.model, &peer), value)).unwrap();
    assert!(blocks_of(&store, peer).is_empty());
    assert_eq!(store.provider_count, 0);
}

#[test]
fn one_peer_cannot_fill_the_store() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let result: Result<Vec<_>, _> = (0..=MAX_RECORDS_PER_PEER)
        .map(|number| {
            let mut info = info((0, 1), now);
            info.model = format!("m{number}@0000000000000001").parse().unwrap();
            let value = SignedRecord::seal(&server, &info, &[], TTL).unwrap();
            store.put_record(Record::new(server_key(&info.model, &server.peer_id()), value))
        })
        .collect();
    assert!(matches!(result, Err(StoreError::PeerFull)));
    assert!(matches!(
        store.put_provider(ProviderRecord::new(b"x".to_vec(), server.peer_id(), vec![])),
        Err(StoreError::WrongKey)
    ));
}

#[test]
fn one_block_has_a_bounded_number_of_providers_and_all_are_returned_in_turn() {
    let mut store = store();
    for _ in 0..MAX_PROVIDERS_PER_KEY {
        store.put_provider(provider(0, PeerId::random())).unwrap();
    }
    assert!(matches!(store.put_provider(provider(0, PeerId::random())), Err(StoreError::Full)));
    let key = provider(0, PeerId::random()).key;
    let seen: HashSet<_> =
        (0..64).flat_map(|_| store.providers(&key).into_iter().take(20)).map(|e| e.provider).collect();
    assert_eq!(seen.len(), MAX_PROVIDERS_PER_KEY);
}

#[test]
fn what_has_expired_is_neither_returned_nor_kept() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let mut short = provider(0, server.peer_id());
    short.expires = Some(Instant::now());
    store.put_provider(short).unwrap();
    assert!(blocks_of(&store, server.peer_id()).is_empty());
    let ended = now - TTL.as_millis() as u64 - crate::record::MAX_CLOCK_SKEW.as_millis() as u64 + 50;
    let record = record(&server, (0, 4), ended);
    store.put_record(record.clone()).unwrap();
    while store.get(&record.key).is_some() {
        std::thread::yield_now();
    }
    store.expire();
    assert!(store.records.is_empty() && store.providers.is_empty() && store.holdings.is_empty());
}

fn network(number: usize) -> Origin {
    Origin::Network(std::net::IpAddr::from([203, 0, 113, number as u8]))
}

#[test]
fn many_ids_of_few_networks_do_not_keep_a_newcomer_from_a_block() {
    let mut store = store();
    let honest = PeerId::random();
    store.insert_provider(provider(0, honest), network(1)).unwrap();
    for number in 0..MAX_PROVIDERS_PER_KEY - 1 {
        store.insert_provider(provider(0, PeerId::random()), network(100 + number % 4)).unwrap();
    }
    let newcomers: Vec<PeerId> = (2..40).map(|_| PeerId::random()).collect();
    for (number, newcomer) in newcomers.iter().enumerate() {
        store.insert_provider(provider(0, *newcomer), network(2 + number)).unwrap();
    }
    assert!(matches!(store.insert_provider(provider(0, PeerId::random()), network(101)), Err(StoreError::Full)));
    let kept = |peer: &PeerId| blocks_of(&store, *peer) == [0];
    assert!(kept(&honest) && newcomers.iter().all(kept));
    assert_eq!(store.provider_count, MAX_PROVIDERS_PER_KEY);
    assert_eq!(store.provided_by.values().sum::<usize>(), MAX_PROVIDERS_PER_KEY);
}

#[test]
fn what_a_record_vouches_for_outlives_mere_claims_of_the_same_network() {
    let (mut store, server) = (store(), Identity::generate());
    store.put_record(record(&server, (0, 4), unix_ms())).unwrap();
    for _ in 0..MAX_PROVIDERS_PER_KEY - 1 {
        store.insert_provider(provider(0, PeerId::random()), network(1)).unwrap();
    }
    // The youngest, which would be the first to go.
    store.insert_provider(provider(0, server.peer_id()), network(1)).unwrap();
    for number in 0..100 {
        store.insert_provider(provider(0, PeerId::random()), network(2 + number)).unwrap();
    }
    assert_eq!(blocks_of(&store, server.peer_id()), [0]);
}

#[test]
fn one_network_has_a_bounded_part_of_the_table_however_many_ids_it_has() {
    let mut store = store();
    let mut entries = 0;
    'full: for _ in 0..64 {
        let peer = PeerId::random();
        for block in 0..MAX_BLOCKS {
            if store.insert_provider(provider(block, peer), network(1)).is_err() {
                break 'full;
            }
            entries += 1;
        }
    }
    assert_eq!(entries, MAX_PROVIDERS_PER_ORIGIN);
    store.insert_provider(provider(0, PeerId::random()), network(2)).unwrap();
}

#[test]
fn records_of_whoever_has_most_give_way() {
    let (mut store, now) = (store(), unix_ms());
    let early = Identity::generate();
    store.insert(record(&early, (0, 1), now), network(1)).unwrap();
    for _ in 1..MAX_RECORDS {
        store.insert(record(&Identity::generate(), (0, 1), now), network(2)).unwrap();
    }
    let (newcomer, again) = (Identity::generate(), Identity::generate());
    store.insert(record(&newcomer, (0, 1), now), network(3)).unwrap();
    assert!(matches!(store.insert(record(&again, (0, 1), now), network(2)), Err(StoreError::Full)));
    assert_eq!(store.records.len(), MAX_RECORDS);
    for kept in [&early, &newcomer] {
        assert!(store.get(&record(kept, (0, 1), now).key).is_some());
    }
}
