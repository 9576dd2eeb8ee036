//! What training forwards leave behind for their backwards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;
use std::time::{Duration, Instant};

use petals_protocol::{PassLayout, StashId, StashLevel};

/// A stash is only ever used on the stream that left it, so nobody can name another client's.
pub(crate) type StashKey = (u64, StashId);

/// A stash that waited for this part of its lifetime may be dropped for a new one; its backward is likely never to come.
const STALE_PART: u32 = 10;

/// Which levels a server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StashPolicy {
    /// The highest for which there is room.
    #[default]
    Auto,
    /// Everything or nothing.
    Full,
    /// What enters each block, or nothing.
    Inputs,
    /// Nothing.
    None,
}

impl FromStr for StashPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "full" => Ok(Self::Full),
            "inputs" => Ok(Self::Inputs),
            "none" => Ok(Self::None),
            _ => Err(format!("`{text}` is not a stash level: use auto, full, inputs or none")),
        }
    }
}

/// Bytes of a stash that is about to be made, at each level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) full: u64,
    /// `None` if that level is no choice.
    pub(crate) inputs: Option<u64>,
}

/// Bytes of a stash that was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    /// Once it is reduced to what enters each block; `None` if it cannot be.
    pub(crate) reduced: Option<u64>,
}

/// Kept values under a byte budget and a time limit. A lost stash is an ordinary answer: the client sends the inputs again.
#[derive(Debug)]
pub(crate) struct StashStore<S> {
    kept: HashMap<StashKey, Kept<S>>,
    /// By age.
    order: BTreeMap<u64, StashKey>,
    /// Streams that may still take what they left.
    open: HashSet<u64>,
    next: u64,
    bytes: u64,
    budget: u64,
    lifetime: Duration,
    reduce: fn(S) -> S,
}

#[derive(Debug)]
struct Kept<S> {
    layout: PassLayout,
    value: S,
    size: Size,
    number: u64,
    since: Instant,
}

impl<S> StashStore<S> {
    /// An empty store; `reduce` frees everything of a value but what enters each block.
    pub(crate) fn new(budget: u64, lifetime: Duration, reduce: fn(S) -> S) -> Self {
        let (kept, order, open) = (HashMap::new(), BTreeMap::new(), HashSet::new());
        Self { kept, order, open, next: 0, bytes: 0, budget, lifetime, reduce }
    }

    /// Lets a stream leave stashes until [`Self::forget_stream`].
    pub(crate) fn open_stream(&mut self, stream: u64) {
        self.open.insert(stream);
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Chooses the level of a new stash and makes room for it; call it before computing the stash.
    ///
    /// Beside what is held it gets the highest level that fits. A new one at a lower level costs one forward more, and so
    /// does an old one that is reduced: the new one gives way, so that nobody can spoil what others were promised. Only
    /// where not even a lower level fits, old ones do: oldest first, those that have waited long are dropped, others are
    /// reduced to what enters each block. None that is fresh and reduced already is dropped, because its replay would
    /// cost as much as that of the new one.
    pub(crate) fn make_room(&mut self, policy: StashPolicy, sizes: Sizes, now: Instant) -> StashLevel {
        self.expire(now);
        let full = Some((StashLevel::Full, sizes.full));
        let inputs = sizes.inputs.map(|bytes| (StashLevel::Inputs, bytes));
        let wanted = match policy {
            StashPolicy::Auto => [full, inputs],
            StashPolicy::Full => [full, None],
            StashPolicy::Inputs => [inputs, None],
            StashPolicy::None => [None, None],
        };
        let wanted = || wanted.iter().copied().flatten();
        if let Some((level, _)) = wanted().find(|&(_, bytes)| self.has_room(bytes)) {
            return level;
        }
        let least = wanted().last().filter(|&(_, bytes)| self.push_back(bytes, policy == StashPolicy::Auto, now));
        least.map_or(StashLevel::None, |(level, _)| level)
    }

    /// Drops what nobody came for in time.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(key) = self.oldest(|kept| now.duration_since(kept.since) > self.lifetime) {
            self.remove(key);
        }
    }

    /// Keeps `value` until it is taken, dropped or expired. Call [`Self::make_room`] before computing it. `false`, and
    /// nothing is kept, if the stream ended while it was computed: nobody would ever take it.
    pub(crate) fn insert(&mut self, key: StashKey, layout: PassLayout, value: S, size: Size, now: Instant) -> bool {
        self.remove(key);
        if !self.open.contains(&key.0) {
            return false;
        }
        let number = self.next;
        self.next += 1;
        self.bytes += size.bytes;
        self.order.insert(number, key);
        self.kept.insert(key, Kept { layout, value, size, number, since: now });
        true
    }

    /// The value, if it is still there and was made under the same layout.
    pub(crate) fn take(&mut self, key: StashKey, layout: &PassLayout) -> Option<S> {
        let kept = self.remove(key)?;
        (kept.layout == *layout).then_some(kept.value)
    }

    /// Drops one.
    pub(crate) fn forget(&mut self, key: StashKey) {
        self.remove(key);
    }

    /// Drops all of a stream that ended, now and from now on.
    pub(crate) fn forget_stream(&mut self, stream: u64) {
        self.open.remove(&stream);
        let keys: Vec<StashKey> = self.kept.keys().filter(|key| key.0 == stream).copied().collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.bytes.saturating_add(bytes) <= self.budget
    }

    /// Drops stale stashes and, if allowed, reduces others until `bytes` more fit. `false`, and nothing has changed, if
    /// they would not.
    fn push_back(&mut self, bytes: u64, may_reduce: bool, now: Instant) -> bool {
        let stale_after = self.lifetime / STALE_PART;
        let after = |kept: &Kept<S>| {
            let stale = now.duration_since(kept.since) > stale_after;
            if stale { 0 } else { kept.size.reduced.filter(|_| may_reduce).unwrap_or(kept.size.bytes) }
        };
        let least: u64 = self.kept.values().map(after).sum();
        if least.saturating_add(bytes) > self.budget {
            return false;
        }
        let oldest_first: Vec<(StashKey, u64)> =
            self.order.values().filter_map(|key| Some((*key, after(self.kept.get(key)?)))).collect();
        for (key, after) in oldest_first {
            if self.has_room(bytes) {
                break;
            }
            if after == 0 {
                self.remove(key);
            } else {
                self.reduce(key);
            }
        }
        true
    }

    fn reduce(&mut self, key: StashKey) {
        let Some(kept) = self.kept.remove(&key) else { return };
        let Some(reduced) = kept.size.reduced else {
            self.kept.insert(key, kept);
            return;
        };
        self.bytes = self.bytes - kept.size.bytes + reduced;
        let (value, size) = ((self.reduce)(kept.value), Size { bytes: reduced, reduced: None });
        self.kept.insert(key, Kept { value, size, ..kept });
    }

    fn oldest(&self, wanted: impl Fn(&Kept<S>) -> bool) -> Option<StashKey> {
        let (_, key) = self.order.first_key_value()?;
        self.kept.get(key).filter(|kept| wanted(kept)).map(|_| *key)
    }

    fn remove(&mut self, key: StashKey) -> Option<Kept<S>> {
        let kept = self.kept.remove(&key)?;
        self.order.remove(&kept.number);
        self.bytes -= kept.size.bytes;
        Some(kept)
    }
}

#[cfg(test)]
mod tests;
