//! The part of the hash table that this node keeps. Everything is checked on the way in, whatever path it takes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error as KadError, RecordStore, Result as KadResult};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};

use crate::addresses::{MAX_ADDRESS_LEN, MAX_ADDRESSES};
use crate::keys::{MAX_BLOCKS, block_key, clock_key, is_block_key, models_key, server_key};
use crate::record::{SignedRecord, SignedRecordError, unix_ms, written_time};
use crate::told_models::written_models;

mod origin;

pub(crate) use origin::Origin;
use origin::yielding;

/// Records kept in all. 8 KiB each, so at most 32 MiB.
const MAX_RECORDS: usize = 4096;
/// Records of one server: one per model it hosts.
const MAX_RECORDS_PER_PEER: usize = 8;
/// Provider entries kept in all. A few hundred bytes each.
const MAX_PROVIDERS: usize = 65_536;
/// Providers of one block.
const MAX_PROVIDERS_PER_KEY: usize = 256;
/// Provider entries of one server: a whole model, and one more while it moves.
const MAX_KEYS_PER_PEER: usize = 2 * MAX_BLOCKS as usize;
/// Provider entries of one network: of a household with several servers, each of a whole model of a hundred blocks.
const MAX_PROVIDERS_PER_ORIGIN: usize = MAX_PROVIDERS / 16;
/// Life of a provider entry. It is only an index of records, which have their own: 5 min outlives two announcements.
pub(crate) const PROVIDER_TTL: Duration = Duration::from_secs(300);

/// Records and provider entries, bounded in all, per key and per peer.
#[derive(Debug)]
pub(crate) struct DirectoryStore {
    local: PeerId,
    records: HashMap<RecordKey, Kept>,
    providers: HashMap<RecordKey, Vec<Entry>>,
    /// Provider entries by whose they are.
    provided_by: HashMap<Origin, usize>,
    holdings: HashMap<PeerId, Holdings>,
    provider_count: usize,
    rotation: AtomicUsize,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    /// Who brought it.
    origin: Origin,
    peer: PeerId,
    written_ms: u64,
    span: Span,
    /// The model that is served, and its number of blocks; nothing of a server that has left.
    serves: Option<(ModelId, u32)>,
    /// The block behind the one that was vouched for last: servers name their blocks in order, and a key says of which block it is only to who hashes that block's name.
    next: AtomicU32,
}

impl Kept {
    /// Whether a block of the span has this key.
    fn covers(&self, model: &ModelId, key: &RecordKey) -> bool {
        let next = self.next.load(Ordering::Relaxed).clamp(self.span.start(), self.span.end());
        let mut blocks = (next..self.span.end()).chain(self.span.start()..next);
        let found = blocks.find(|block| block_key(model, *block) == *key);
        found.into_iter().for_each(|block| self.next.store(block + 1, Ordering::Relaxed));
        found.is_some()
    }
}

/// What one peer occupies.
#[derive(Debug, Default)]
struct Holdings {
    records: HashSet<RecordKey>,
    blocks: HashSet<RecordKey>,
}

/// A provider entry, and whose it is.
#[derive(Debug)]
struct Entry {
    entry: ProviderRecord,
    origin: Origin,
    /// Whether a record of the provider that is known here says that it serves the block.
    vouched: bool,
}

/// Why something was not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StoreError {
    #[error(transparent)]
    Record(#[from] SignedRecordError),
    #[error("the record's key does not belong to its signer and model")]
    WrongKey,
    #[error("a later record is known")]
    Stale,
    #[error("no more records of this peer are kept")]
    PeerFull,
    #[error("no more records are kept")]
    Full,
}

impl DirectoryStore {
    pub(crate) fn new(local: PeerId) -> Self {
        Self {
            local,
            records: HashMap::new(),
            providers: HashMap::new(),
            provided_by: HashMap::new(),
            holdings: HashMap::new(),
            provider_count: 0,
            rotation: AtomicUsize::new(0),
        }
    }

    /// Keeps a record if it is valid, belongs under its key and is later than what is known.
    pub(crate) fn insert(&mut self, mut record: Record, origin: Origin) -> Result<(), StoreError> {
        let signed = SignedRecord::open(&record.value, unix_ms())?;
        if record.key != server_key(&signed.info.model, &signed.peer) {
            return Err(StoreError::WrongKey);
        }
        match self.records.get(&record.key) {
            Some(kept) if kept.written_ms > signed.info.written_ms => return Err(StoreError::Stale),
            Some(kept) if kept.written_ms == signed.info.written_ms && kept.record.value != record.value => {
                return Err(StoreError::Stale);
            }
            Some(_) => {}
            None => self.make_room_for_record(&signed.peer, origin)?,
        }
        record.publisher = Some(signed.peer);
        record.expires = Some(Instant::now() + signed.remaining);
        self.holdings.entry(signed.peer).or_default().records.insert(record.key.clone());
        let ServerInfo { model, model_blocks, span, state, written_ms, .. } = signed.info;
        // A server's own word on what it serves counts at once, not when its older provider entries expire.
        if let Some(before) = self.records.get(&record.key).map(|kept| kept.span) {
            let serves = |block| state != ServerState::Offline && span.contains(block);
            let gone = before.blocks().filter(|block| !serves(*block)).map(|block| block_key(&model, block));
            gone.for_each(|key| self.remove_provider(&key, &signed.peer));
        }
        let blocks = model_blocks.unwrap_or(span.end()).min(MAX_BLOCKS);
        let serves = (state != ServerState::Offline).then_some((model, blocks));
        let next = AtomicU32::new(span.start());
        let kept = Kept { origin, peer: signed.peer, written_ms, span, serves, next, record };
        self.records.insert(kept.record.key.clone(), kept);
        Ok(())
    }

    /// Notes that a peer serves a block. The caller knows that the entry came from that peer itself.
    pub(crate) fn insert_provider(&mut self, mut entry: ProviderRecord, origin: Origin) -> Result<(), StoreError> {
        if !is_block_key(&entry.key) {
            return Err(StoreError::WrongKey);
        }
        entry.addresses.retain(|address| address.len() <= MAX_ADDRESS_LEN);
        entry.addresses.truncate(MAX_ADDRESSES);
        let latest = Instant::now() + PROVIDER_TTL;
        let own = entry.provider == self.local;
        entry.expires = if own { None } else { Some(entry.expires.map_or(latest, |expires| expires.min(latest))) };
        let vouched = self.vouches(&entry);
        if let Some(known) = self.providers.get_mut(&entry.key).and_then(|all| find(all, &entry.provider)) {
            (known.entry, known.vouched) = (entry, vouched);
            return Ok(());
        }
        let of_peer = self.holdings.get(&entry.provider).map_or(0, |held| held.blocks.len());
        if of_peer >= MAX_KEYS_PER_PEER {
            return Err(StoreError::PeerFull);
        }
        if !own {
            self.make_room_for_provider(&entry.key, origin)?;
        }
        self.holdings.entry(entry.provider).or_default().blocks.insert(entry.key.clone());
        *self.provided_by.entry(origin).or_default() += 1;
        self.providers.entry(entry.key.clone()).or_default().push(Entry { entry, origin, vouched });
        self.provider_count += 1;
        Ok(())
    }

    /// Whether a record that is known here says that the provider serves the block. Records are kept elsewhere than provider entries, so that one
    /// without may be as good.
    fn vouches(&self, entry: &ProviderRecord) -> bool {
        let records = self.holdings.get(&entry.provider).into_iter().flat_map(|held| &held.records);
        let mut live =
            records.filter_map(|key| self.records.get(key)).filter(|kept| !kept.record.is_expired(Instant::now()));
        live.any(|kept| kept.serves.as_ref().is_some_and(|(model, _)| kept.covers(model, &entry.key)))
    }

    /// Lets an entry of whoever has most give way, if there is no room.
    fn make_room_for_provider(&mut self, key: &RecordKey, origin: Origin) -> Result<(), StoreError> {
        let of_origin = self.provided_by.get(&origin).copied().unwrap_or_default();
        if of_origin >= MAX_PROVIDERS_PER_ORIGIN {
            return Err(StoreError::PeerFull);
        }
        let all = self.providers.get(key).map_or(&[][..], Vec::as_slice);
        if all.len() >= MAX_PROVIDERS_PER_KEY {
            let place = yielding(all.iter().map(|known| (known.origin, known.vouched)), origin);
            let peer = place.map(|place| all[place].entry.provider).ok_or(StoreError::Full)?;
            self.remove_provider(key, &peer);
        } else if self.provider_count >= MAX_PROVIDERS {
            let most = self.provided_by.iter().max_by_key(|(origin, count)| (**count, **origin));
            let (most, _) = most.filter(|(_, count)| **count > of_origin + 1).ok_or(StoreError::Full)?;
            let most = *most;
            let of_most = |(key, all): (&RecordKey, &Vec<Entry>)| {
                let known = all.iter().rev().find(|known| known.origin == most)?;
                Some((key.clone(), known.entry.provider))
            };
            let (key, peer) = self.providers.iter().find_map(of_most).ok_or(StoreError::Full)?;
            self.remove_provider(&key, &peer);
        }
        Ok(())
    }

    /// Drops what has expired. Called now and then; expired entries are never returned either way.
    pub(crate) fn expire(&mut self) {
        let now = Instant::now();
        let keys: Vec<_> = self
            .records
            .values()
            .filter(|kept| kept.record.is_expired(now))
            .map(|kept| kept.record.key.clone())
            .collect();
        keys.iter().for_each(|key| self.remove(key));
        let expired = self.providers.values().flatten().map(|known| &known.entry).filter(|entry| entry.is_expired(now));
        let entries: Vec<_> = expired.map(|entry| (entry.key.clone(), entry.provider)).collect();
        entries.iter().for_each(|(key, peer)| self.remove_provider(key, peer));
    }

    fn make_room_for_record(&mut self, peer: &PeerId, origin: Origin) -> Result<(), StoreError> {
        if self.holdings.get(peer).is_some_and(|held| held.records.len() >= MAX_RECORDS_PER_PEER) {
            return Err(StoreError::PeerFull);
        }
        if self.records.len() >= MAX_RECORDS && *peer != self.local {
            let all = || self.records.values().map(|kept| (kept.origin, true));
            let place = yielding(all(), origin).ok_or(StoreError::Full)?;
            let most = all().nth(place).map(|(origin, _)| origin);
            // Of whoever has most what was written last: what has lived longer is the better candidate for living on.
            let of_most = self.records.values().filter(|kept| Some(kept.origin) == most);
            let key = of_most.max_by_key(|kept| kept.written_ms).map(|kept| kept.record.key.clone());
            self.remove(&key.ok_or(StoreError::Full)?);
        }
        Ok(())
    }

    fn release(&mut self, peer: &PeerId, release: impl FnOnce(&mut Holdings)) {
        if let Some(held) = self.holdings.get_mut(peer) {
            release(held);
            if held.records.is_empty() && held.blocks.is_empty() {
                self.holdings.remove(peer);
            }
        }
    }
}

fn find<'a>(entries: &'a mut [Entry], peer: &PeerId) -> Option<&'a mut Entry> {
    entries.iter_mut().find(|known| known.entry.provider == *peer)
}

impl RecordStore for DirectoryStore {
    type RecordsIter<'a> = std::vec::IntoIter<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        if *key == clock_key() {
            return Some(Cow::Owned(Record::new(key.clone(), written_time(unix_ms()))));
        }
        let now = Instant::now();
        if *key == models_key() {
            let live = self.records.values().filter(|kept| !kept.record.is_expired(now));
            let served = live.filter_map(|kept| kept.serves.as_ref().map(|(model, blocks)| (model, *blocks)));
            return Some(Cow::Owned(Record::new(key.clone(), written_models(served))));
        }
        self.records.get(key).filter(|kept| !kept.record.is_expired(now)).map(|kept| Cow::Borrowed(&kept.record))
    }

    fn put(&mut self, record: Record) -> KadResult<()> {
        // Kademlia knows three errors; whoever needs the reason calls `insert`.
        self.insert(record, Origin::Peer(self.local)).map_err(|error| match error {
            StoreError::Full | StoreError::PeerFull => KadError::MaxRecords,
            _ => KadError::ValueTooLarge,
        })
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Some(kept) = self.records.remove(key) {
            self.release(&kept.peer, |held| {
                held.records.remove(key);
            });
        }
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        self.records.values().map(|kept| Cow::Borrowed(&kept.record)).collect::<Vec<_>>().into_iter()
    }

    fn add_provider(&mut self, entry: ProviderRecord) -> KadResult<()> {
        let origin = Origin::Peer(entry.provider);
        self.insert_provider(entry, origin).map_err(|_| KadError::MaxProvidedKeys)
    }

    /// Kademlia sends the first 12 of these, so every call starts elsewhere: who asks again gets to know the others.
    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = Instant::now();
        let Some(entries) = self.providers.get(key) else { return Vec::new() };
        let live = entries.iter().map(|known| &known.entry).filter(|entry| !entry.is_expired(now));
        let mut live: Vec<_> = live.cloned().collect();
        if live.len() > 1 {
            let start = self.rotation.fetch_add(7, Ordering::Relaxed) % live.len();
            live.rotate_left(start);
        }
        live
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let all = self.providers.values().flatten().map(|known| &known.entry);
        let own = all.filter(|entry| entry.provider == self.local);
        own.map(Cow::Borrowed).collect::<Vec<_>>().into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        let Some(entries) = self.providers.get_mut(key) else { return };
        for gone in entries.extract_if(.., |known| known.entry.provider == *peer) {
            self.provider_count -= 1;
            if let Some(count) = self.provided_by.get_mut(&gone.origin) {
                *count -= 1;
                if *count == 0 {
                    self.provided_by.remove(&gone.origin);
                }
            }
        }
        if entries.is_empty() {
            self.providers.remove(key);
        }
        self.release(peer, |held| {
            held.blocks.remove(key);
        });
    }
}

#[cfg(test)]
mod tests;
