//! What training forwards leave behind for their backwards.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::{Duration, Instant};

use petals_protocol::{PassLayout, StashId, StashLevel};
use petals_swarm::PeerId;

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
    /// Streams that may still take what they left, and whose they are.
    open: HashMap<u64, PeerId>,
    /// Bytes of each peer that has any.
    by_peer: HashMap<PeerId, u64>,
    next: u64,
    bytes: u64,
    budget: u64,
    lifetime: Duration,
    reduce: fn(S) -> S,
}

#[derive(Debug)]
struct Kept<S> {
    peer: PeerId,
    layout: PassLayout,
    value: S,
    size: Size,
    number: u64,
    since: Instant,
}

impl<S> StashStore<S> {
    /// An empty store; `reduce` frees everything of a value but what enters each block.
    pub(crate) fn new(budget: u64, lifetime: Duration, reduce: fn(S) -> S) -> Self {
        let (kept, order, open, by_peer) = (HashMap::new(), BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { kept, order, open, by_peer, next: 0, bytes: 0, budget, lifetime, reduce }
    }

    /// Lets a stream of `peer` leave stashes until [`Self::forget_stream`].
    pub(crate) fn open_stream(&mut self, stream: u64, peer: PeerId) {
        self.open.insert(stream, peer);
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that may be held.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Chooses the level of a new stash of `stream` and makes room for it; call it before computing the stash.
    ///
    /// Beside what is held it gets the highest level that fits. If none does, peers that hold more than their share give way:
    /// of each peer as much as the budget divided by those that hold something is its own. What is beyond that, oldest
    /// first, is reduced to what enters each block, and dropped if that is not enough. A peer that has its share gives
    /// way to itself alone: a new stash at a lower level costs one forward more, and so does an old one that is reduced,
    /// so nobody can spoil what others were promised. Only what has waited long is dropped for everybody. None that is fresh and
    /// reduced already is dropped for another of the same peer, because its replay would cost as much.
    pub(crate) fn make_room(&mut self, stream: u64, policy: StashPolicy, sizes: Sizes, now: Instant) -> StashLevel {
        self.expire(now);
        // Of a stream that has ended nothing will be kept.
        let Some(peer) = self.open.get(&stream).copied() else { return StashLevel::None };
        let full = Some((StashLevel::Full, sizes.full));
        let inputs = sizes.inputs.map(|bytes| (StashLevel::Inputs, bytes));
        let wanted = match policy {
            StashPolicy::Auto => [full, inputs],
            StashPolicy::Full => [full, None],
            StashPolicy::Inputs => [inputs, None],
            StashPolicy::None => [None, None],
        };
        let wanted = || wanted.iter().copied().flatten();
        let may_reduce = policy == StashPolicy::Auto;
        if let Some((level, _)) =
            wanted().find(|&(_, bytes)| self.has_room(bytes) || self.reclaim(peer, bytes, may_reduce))
        {
            return level;
        }
        let least = wanted().last().filter(|&(_, bytes)| self.push_back(peer, bytes, may_reduce, now));
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
        let Some(peer) = self.open.get(&key.0).copied() else { return false };
        let number = self.next;
        self.next += 1;
        self.bytes += size.bytes;
        *self.by_peer.entry(peer).or_default() += size.bytes;
        self.order.insert(number, key);
        self.kept.insert(key, Kept { peer, layout, value, size, number, since: now });
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

    /// Whether any stash has such a layout.
    pub(crate) fn any(&self, wanted: impl Fn(&PassLayout) -> bool) -> bool {
        self.kept.values().any(|kept| wanted(&kept.layout))
    }

    /// Drops all stashes but those of such layouts.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&PassLayout) -> bool) {
        let unwanted = self.kept.iter().filter(|(_, kept)| !wanted(&kept.layout));
        let keys: Vec<StashKey> = unwanted.map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.bytes.saturating_add(bytes) <= self.budget
    }

    /// Takes back what peers hold beyond their shares until `bytes` more fit. `false`, and nothing has changed, if `peer`
    /// would then hold more than its own share.
    fn reclaim(&mut self, peer: PeerId, bytes: u64, may_reduce: bool) -> bool {
        let held = self.by_peer.get(&peer).copied();
        let peers = self.by_peer.len() as u64 + u64::from(held.is_none());
        let share = self.budget / peers;
        if held.unwrap_or(0).saturating_add(bytes) > share {
            return false;
        }
        while !self.has_room(bytes) {
            // Were nobody above the share, there would be room.
            let Some((&most, _)) =
                self.by_peer.iter().filter(|(_, held)| **held > share).max_by_key(|(_, held)| **held)
            else {
                return false;
            };
            let oldest = |store: &Self, reducible: bool| {
                let wanted =
                    |kept: &Kept<S>| kept.peer == most && (!reducible || (may_reduce && kept.size.reduced.is_some()));
                store.order.values().find(|key| store.kept.get(key).is_some_and(wanted)).copied()
            };
            if let Some(key) = oldest(self, true) {
                self.reduce(key);
            } else if let Some(key) = oldest(self, false) {
                self.remove(key);
            } else {
                return false;
            }
        }
        true
    }

    /// Drops stale stashes and, if allowed, reduces others of `peer` until `bytes` more fit. `false`, and nothing has
    /// changed, if they would not.
    fn push_back(&mut self, peer: PeerId, bytes: u64, may_reduce: bool, now: Instant) -> bool {
        let stale_after = self.lifetime / STALE_PART;
        let after = |kept: &Kept<S>| {
            let stale = now.duration_since(kept.since) > stale_after;
            let reduced = kept.size.reduced.filter(|_| may_reduce && kept.peer == peer);
            if stale { 0 } else { reduced.unwrap_or(kept.size.bytes) }
        };
        let least: u64 = self.kept.values().map(after).sum();
        if least.saturating_add(bytes) > self.budget {
            return false;
        }
        let size = |key: &StashKey| self.kept.get(key).map(|kept| (kept.size.bytes, after(kept)));
        let sizes = self.order.values().filter_map(|key| Some((*key, size(key)?)));
        let oldest_first: Vec<(StashKey, (u64, u64))> = sizes.collect();
        for (key, (before, after)) in oldest_first {
            if self.has_room(bytes) {
                break;
            }
            if after == 0 {
                self.remove(key);
            } else if after < before {
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
        self.give_back(kept.peer, kept.size.bytes - reduced);
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
        self.give_back(kept.peer, kept.size.bytes);
        Some(kept)
    }

    fn give_back(&mut self, peer: PeerId, bytes: u64) {
        if let Some(held) = self.by_peer.get_mut(&peer) {
            *held -= bytes;
            if *held == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
