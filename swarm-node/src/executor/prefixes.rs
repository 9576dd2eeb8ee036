//! Keys and values of what sessions begin with: the prefix of an adapter, and the first pages of the text behind it (a system prompt,
//! the chat so far). Sessions of one peer that begin alike share them, and those of all peers only where the node's owner said so: whoever shares
//! pages with somebody can tell by the time whether a text was there before, and so guess others' texts page by page.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use petals_model::{BlockStack, CachedPrefix, KvCache, KvMeter, PAGE_TOKENS, PassError, SpanTables};
use petals_protocol::{PassLayout, SessionId, Span, encode};
use petals_swarm::PeerId;

use super::compute::Compute;

/// What a prefix is made of, in 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// The key of what this is the key of, with one more page of text rows behind it.
    fn and(self, rows: &[f32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hash(&mut hasher, rows);
        Self(*hasher.finalize().as_bytes())
    }

    /// The key of what this is the key of, kept for those alone whom `audience` names.
    fn within(self, (peer, salt): (PeerId, u32)) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&salt.to_le_bytes()).update(&peer.to_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The BLAKE3 hash of everything that sequences of `layout` depend on besides the blocks' weights and their text: hidden states of the prefix
    /// and tables, and whether they may grow longer than texts of pre-training.
    pub(crate) fn new(layout: &PassLayout, hidden: Option<&[f32]>, tables: Option<&[f32]>, is_long: bool) -> Self {
        let PassLayout { span, prefix_len, injection, weights, .. } = layout;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&encode(&(span, prefix_len, injection, weights, is_long)));
        for values in [hidden, tables] {
            let values = values.unwrap_or_default();
            hasher.update(&(values.len() as u64).to_le_bytes());
            hash(&mut hasher, values);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

fn hash(hasher: &mut blake3::Hasher, values: &[f32]) {
    values.chunks(1024).for_each(|chunk| {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    });
}

/// The first pages of a text that are known already.
#[derive(Debug)]
pub(crate) struct Opening {
    /// Everything up to there.
    pub(crate) cache: KvCache,
    /// Rows of text.
    pub(crate) rows: usize,
    /// Their hidden states behind the span, `[rows, hidden]`, as far as they are known.
    pub(crate) behind: Vec<Option<Vec<f32>>>,
}

/// The prefixes and openings that were used last, within a budget of bytes.
#[derive(Debug)]
pub(crate) struct Prefixes {
    /// Whether peers share with each other.
    shared: bool,
    kept: HashMap<PrefixKey, Kept>,
    budget: u64,
    bytes: u64,
    clock: u64,
    meter: KvMeter,
    /// Tables that sessions have at the moment.
    tables: HashMap<PrefixKey, Weak<SpanTables>>,
}

#[derive(Debug)]
struct Kept {
    cache: KvCache,
    behind: Option<Vec<f32>>,
    bytes: u64,
    used: u64,
}

impl Prefixes {
    /// Nothing yet, of at most `budget` bytes; with `shared`, peers have what others left.
    pub(crate) fn new(budget: u64, shared: bool) -> Self {
        Self {
            shared,
            kept: HashMap::new(),
            budget,
            bytes: 0,
            clock: 0,
            meter: KvMeter::default(),
            tables: HashMap::new(),
        }
    }

    /// Counts the pages of all caches of a node.
    pub(crate) fn meter(&self) -> &KvMeter {
        &self.meter
    }

    /// The key under which a session of `peer` finds what is kept of `content`. A client that gives its sessions a salt keeps its own users apart, and
    /// shares with nobody.
    pub(crate) fn key(&self, content: PrefixKey, peer: PeerId, session: SessionId) -> PrefixKey {
        let salt = session.salt();
        if self.shared && salt == 0 { content } else { content.within((peer, salt)) }
    }

    /// Tables on the device. Sessions with the same ones share them, so that their rows become one product, whoever they are of: only who has all of
    /// an adapter could learn that somebody else uses it too.
    pub(crate) fn tables(
        &mut self,
        blocks: &BlockStack,
        key: PrefixKey,
        layout: &PassLayout,
        values: &[f32],
    ) -> Result<Arc<SpanTables>, PassError> {
        self.tables.retain(|_, tables| tables.strong_count() > 0);
        if let Some(tables) = self.tables.get(&key).and_then(Weak::upgrade) {
            return Ok(tables);
        }
        let tables = Arc::new(blocks.upload_tables(layout, values)?);
        self.tables.insert(key, Arc::downgrade(&tables));
        Ok(tables)
    }

    /// The cache of a prefix, and its hidden states behind the span `[prefix_len, hidden]` where it has any; computed if it is not
    /// kept.
    pub(crate) fn get(
        &mut self,
        compute: &Compute,
        (span, longest): (Span, usize),
        key: PrefixKey,
        prefix: CachedPrefix<'_>,
    ) -> Result<(KvCache, Option<Vec<f32>>), PassError> {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.used = self.clock;
            return Ok((kept.cache.clone(), kept.behind.clone()));
        }
        let mut cache = compute.blocks.cache(span, longest, &self.meter)?;
        let pages = prefix.rows.div_ceil(PAGE_TOKENS) as u64;
        let behind = compute.blocks.begin(prefix, &mut cache)?;
        let bytes = pages * compute.page_bytes(span) + 4 * behind.as_ref().map_or(0, Vec::len) as u64;
        self.keep(key, cache.clone(), behind.clone(), bytes);
        Ok((cache, behind))
    }

    /// The longest known beginning of `text`, `[rows, hidden]`, behind what `key` is the key of, in whole pages; at least one row is
    /// left. Outputs are known of the rows from `read` on.
    pub(crate) fn opening(&mut self, key: PrefixKey, text: &[f32], hidden: usize, read: usize) -> Option<Opening> {
        self.clock += 1;
        let page = PAGE_TOKENS * hidden;
        let (mut key, mut found) = (key, None::<Opening>);
        for (number, rows) in text.chunks_exact(page).enumerate() {
            key = key.and(rows);
            let end = (number + 1) * PAGE_TOKENS;
            let Some(kept) = self.kept.get_mut(&key).filter(|kept| kept.behind.is_some() || end <= read) else { break };
            if end * hidden >= text.len() {
                break;
            }
            kept.used = self.clock;
            let mut behind = found.map(|found| found.behind).unwrap_or_default();
            behind.push(kept.behind.clone());
            found = Some(Opening { cache: kept.cache.clone(), rows: end, behind });
        }
        found
    }

    /// Keeps the pages of a text that was computed: its cache behind `prefix_rows` rows, and its hidden states behind the span if all of
    /// them are known.
    pub(crate) fn keep_opening(
        &mut self,
        key: PrefixKey,
        text: &[f32],
        (cache, prefix_rows): (&KvCache, usize),
        behind: Option<&[f32]>,
        page_bytes: u64,
    ) {
        let hidden = text.len() / (cache.len() - prefix_rows).max(1);
        let (mut key, page) = (key, PAGE_TOKENS * hidden);
        for (number, rows) in text.chunks_exact(page.max(1)).enumerate() {
            key = key.and(rows);
            let behind = behind.and_then(|behind| behind.get(number * page..(number + 1) * page));
            if self.kept.get(&key).is_some_and(|kept| kept.behind.is_some() || behind.is_none()) {
                continue;
            }
            if prefix_rows + (number + 1) * PAGE_TOKENS < cache.shortest() {
                continue;
            }
            let mut until = cache.clone();
            until.truncate(prefix_rows + (number + 1) * PAGE_TOKENS);
            let bytes = page_bytes + 4 * behind.map_or(0, <[f32]>::len) as u64;
            self.keep(key, until, behind.map(<[f32]>::to_vec), bytes);
        }
    }

    fn keep(&mut self, key: PrefixKey, cache: KvCache, behind: Option<Vec<f32>>, bytes: u64) {
        if bytes > self.budget {
            return;
        }
        if let Some(old) = self.kept.remove(&key) {
            self.bytes -= old.bytes;
        }
        self.make_room(bytes);
        self.bytes += bytes;
        self.kept.insert(key, Kept { cache, behind, bytes, used: self.clock });
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes + bytes > self.budget {
            // Of one text the last page first: its entry holds those before it as well.
            let order = |kept: &Kept| (kept.used, std::cmp::Reverse(kept.cache.len()));
            let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| order(kept)).map(|(key, _)| *key) else {
                return;
            };
            if let Some(kept) = self.kept.remove(&oldest) {
                self.bytes -= kept.bytes;
            }
        }
    }
}
