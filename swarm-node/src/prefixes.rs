//! Keys and values of prefixes that sessions begin with. Sessions with one adapter share them.

use std::collections::HashMap;

use petals_model::{BlockStack, CachedPrefix, KvCache, KvMeter, PAGE_TOKENS, PassError};
use petals_protocol::{Injection, Span};

/// What a prefix is made of, in 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// The BLAKE3 hash of everything that the result depends on besides the blocks' weights.
    pub(crate) fn new(span: Span, prefix: &CachedPrefix) -> Self {
        let CachedPrefix { rows, injection, hidden, prompts } = prefix;
        let mut hasher = blake3::Hasher::new();
        let injection = match injection {
            Injection::None => 0u64,
            Injection::Add => 1,
            Injection::Replace => 2,
        };
        for number in [u64::from(span.start()), u64::from(span.end()), *rows as u64, injection] {
            hasher.update(&number.to_le_bytes());
        }
        for values in [hidden, prompts] {
            let values = values.as_deref().unwrap_or_default();
            hasher.update(&(values.len() as u64).to_le_bytes());
            values.chunks(1024).for_each(|chunk| {
                let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
                hasher.update(&bytes);
            });
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// The prefixes that were used last, within a budget of bytes.
#[derive(Debug)]
pub(crate) struct Prefixes {
    kept: HashMap<PrefixKey, Kept>,
    budget: u64,
    bytes: u64,
    clock: u64,
    meter: KvMeter,
}

#[derive(Debug)]
struct Kept {
    cache: KvCache,
    behind: Option<Vec<f32>>,
    bytes: u64,
    used: u64,
}

impl Prefixes {
    pub(crate) fn new(budget: u64) -> Self {
        Self { kept: HashMap::new(), budget, bytes: 0, clock: 0, meter: KvMeter::default() }
    }

    /// Counts the pages of all caches of a node.
    pub(crate) fn meter(&self) -> &KvMeter {
        &self.meter
    }

    /// The cache of a prefix, and its hidden states behind the span `[prefix_len, hidden]` where it has any; computed if it is not
    /// kept.
    pub(crate) fn get(
        &mut self,
        blocks: &BlockStack,
        span: Span,
        key: PrefixKey,
        prefix: CachedPrefix,
    ) -> Result<(KvCache, Option<Vec<f32>>), PassError> {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.used = self.clock;
            return Ok((kept.cache.clone(), kept.behind.clone()));
        }
        let mut cache = blocks.cache(span, &self.meter)?;
        let pages = prefix.rows.div_ceil(PAGE_TOKENS) as u64;
        let behind = blocks.begin(prefix, &mut cache)?;
        let bytes = pages * blocks.config().kv_page_bytes(span.len()) + 4 * behind.as_ref().map_or(0, Vec::len) as u64;
        if bytes <= self.budget {
            self.make_room(bytes);
            let kept = Kept { cache: cache.clone(), behind: behind.clone(), bytes, used: self.clock };
            self.bytes += bytes;
            self.kept.insert(key, kept);
        }
        Ok((cache, behind))
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes + bytes > self.budget {
            let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key) else { return };
            if let Some(kept) = self.kept.remove(&oldest) {
                self.bytes -= kept.bytes;
            }
        }
    }
}
