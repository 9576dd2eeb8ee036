//! What training forwards leave behind for their backwards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;
use std::time::{Duration, Instant};

use petals_protocol::{PassLayout, StashId, StashLevel};
use petals_swarm::{Party, Shares};

/// A stash is only ever used on the stream that left it, so nobody can name another client's.
pub(crate) type StashKey = (u64, StashId);

/// A stash that waited for this part of its lifetime may be dropped for a new one; its backward is likely never to come.
const STALE_PART: u32 = 10;
/// Stashes that are looked at for one new one, at most: others wait meanwhile.
const MOST_LOOKED_AT: usize = 1024;

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
    open: HashMap<u64, Open>,
    /// What each party holds, by age.
    of_party: HashMap<Party, Held>,
    shares: Shares,
    next: u64,
    lifetime: Duration,
    reduce: fn(S) -> S,
}

/// Whose a stream is, and what it left.
#[derive(Debug)]
struct Open {
    party: Party,
    stashes: HashSet<StashId>,
}

/// Stashes of a party, by age: those that can be reduced, and those that cannot.
#[derive(Debug, Default)]
struct Held {
    whole: BTreeMap<u64, StashKey>,
    reduced: BTreeMap<u64, StashKey>,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.reduced.is_empty()
    }

    fn oldest(&self) -> Option<StashKey> {
        let firsts = [self.whole.first_key_value(), self.reduced.first_key_value()];
        firsts.into_iter().flatten().min_by_key(|(number, _)| **number).map(|(_, key)| *key)
    }
}

#[derive(Debug)]
struct Kept<S> {
    party: Party,
    layout: PassLayout,
    value: S,
    size: Size,
    number: u64,
    since: Instant,
}

impl<S> StashStore<S> {
    /// An empty store; `reduce` frees everything of a value but what enters each block.
    pub(crate) fn new(budget: u64, lifetime: Duration, reduce: fn(S) -> S) -> Self {
        let (kept, order, open, of_party) = (HashMap::new(), BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { kept, order, open, of_party, shares: Shares::new(budget), next: 0, lifetime, reduce }
    }

    /// Lets a stream of `party` leave stashes until [`Self::forget_stream`].
    pub(crate) fn open_stream(&mut self, stream: u64, party: Party) {
        self.open.insert(stream, Open { party, stashes: HashSet::new() });
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.shares.held()
    }

    /// Bytes that may be held.
    pub(crate) fn budget(&self) -> u64 {
        self.shares.capacity()
    }

    /// Chooses the level of a new stash of `stream` and makes room for it; call it before computing the stash.
    ///
    /// Beside what is held it gets the highest level that fits. If none does, those that hold more than their share give way:
    /// each address has the same part of the budget, and each peer of it the same part of that. What is beyond, oldest
    /// first, is reduced to what enters each block, and dropped if that is not enough. A peer that has its share gives
    /// way to itself alone: a new stash at a lower level costs one forward more, and so does an old one that is reduced,
    /// so nobody can spoil what others were promised. Only what has waited long is dropped for everybody. None that is fresh and
    /// reduced already is dropped for another of the same peer, because its replay would cost as much.
    pub(crate) fn make_room(&mut self, stream: u64, policy: StashPolicy, sizes: Sizes, now: Instant) -> StashLevel {
        self.expire(now);
        // Of a stream that has ended nothing will be kept.
        let Some(party) = self.open.get(&stream).map(|open| open.party) else { return StashLevel::None };
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
            wanted().find(|&(_, bytes)| self.has_room(bytes) || self.reclaim(party, bytes, may_reduce))
        {
            return level;
        }
        let least = wanted().last().filter(|&(_, bytes)| self.push_back(party, bytes, may_reduce, now));
        least.map_or(StashLevel::None, |(level, _)| level)
    }

    /// Drops what nobody came for in time.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(key) = self.oldest(|kept| now.duration_since(kept.since) > self.lifetime) {
            self.remove(key);
        }
    }

    /// Keeps `value` until it is taken, dropped or expired. Call [`Self::make_room`] before computing it. `false`, and
    /// nothing is kept, if the stream ended while it was computed: nobody would ever take it. The same if passes beside it took the room, as far as
    /// that is not beyond their shares.
    pub(crate) fn insert(&mut self, key: StashKey, layout: PassLayout, value: S, size: Size, now: Instant) -> bool {
        self.remove(key);
        let Some(party) = self.open.get(&key.0).map(|open| open.party) else { return false };
        if !self.has_room(size.bytes) && !self.reclaim(party, size.bytes, size.reduced.is_some()) {
            return false;
        }
        let Some(open) = self.open.get_mut(&key.0) else { return false };
        open.stashes.insert(key.1);
        let number = self.next;
        self.next += 1;
        self.order.insert(number, key);
        self.add(key, Kept { party, layout, value, size, number, since: now });
        true
    }

    fn add(&mut self, key: StashKey, kept: Kept<S>) {
        self.shares.take(kept.party, kept.size.bytes);
        let held = self.of_party.entry(kept.party).or_default();
        let of_kind = if kept.size.reduced.is_some() { &mut held.whole } else { &mut held.reduced };
        of_kind.insert(kept.number, key);
        self.kept.insert(key, kept);
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
        let Some(open) = self.open.remove(&stream) else { return };
        for stash in open.stashes {
            self.remove((stream, stash));
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
        bytes <= self.shares.free()
    }

    /// Takes back what others hold beyond their shares until `bytes` more fit. `false`, and nothing has changed, if `party`
    /// would then hold more than its own share.
    fn reclaim(&mut self, party: Party, bytes: u64, may_reduce: bool) -> bool {
        if !self.shares.is_portion(party, bytes) {
            return false;
        }
        while !self.has_room(bytes) {
            // Were nobody above the share, there would be room.
            let ahead = |of: &Party| Some((self.shares.ahead(*of, party)?, *of));
            let Some((_, most)) = self.of_party.keys().filter_map(ahead).max_by_key(|(ahead, _)| *ahead) else {
                return false;
            };
            let Some(held) = self.of_party.get(&most) else { return false };
            let whole = held.whole.first_key_value().filter(|_| may_reduce).map(|(_, key)| *key);
            match (whole, held.oldest()) {
                (Some(key), _) => self.reduce(key),
                (None, Some(key)) => drop(self.remove(key)),
                (None, None) => return false,
            }
        }
        true
    }

    /// Drops stale stashes and, if allowed, reduces others of `party` until `bytes` more fit. `false`, and nothing has
    /// changed, if they would not.
    fn push_back(&mut self, party: Party, bytes: u64, may_reduce: bool, now: Instant) -> bool {
        let stale_after = self.lifetime / STALE_PART;
        let missing = bytes.saturating_sub(self.shares.free());
        let is_stale = |kept: &Kept<S>| now.duration_since(kept.since) > stale_after;
        let (mut gained, mut drop_those, mut reduce_those) = (0, Vec::new(), Vec::new());
        for key in self.order.values().take(MOST_LOOKED_AT) {
            let Some(kept) = self.kept.get(key).filter(|kept| gained < missing && is_stale(kept)) else { break };
            gained += kept.size.bytes;
            drop_those.push(*key);
        }
        let own = self.of_party.get(&party).filter(|_| may_reduce);
        for key in own.into_iter().flat_map(|held| held.whole.values()).take(MOST_LOOKED_AT) {
            if gained >= missing {
                break;
            }
            let Some(kept) = self.kept.get(key).filter(|kept| !is_stale(kept)) else { continue };
            gained += kept.size.bytes - kept.size.reduced.unwrap_or(kept.size.bytes);
            reduce_those.push(*key);
        }
        if gained < missing {
            return false;
        }
        drop_those.into_iter().for_each(|key| drop(self.remove(key)));
        reduce_those.into_iter().for_each(|key| self.reduce(key));
        true
    }

    fn reduce(&mut self, key: StashKey) {
        let Some(reduced) = self.kept.get(&key).and_then(|kept| kept.size.reduced) else { return };
        let Some(kept) = self.subtract(key) else { return };
        let (value, size) = ((self.reduce)(kept.value), Size { bytes: reduced, reduced: None });
        self.add(key, Kept { value, size, ..kept });
    }

    fn oldest(&self, wanted: impl Fn(&Kept<S>) -> bool) -> Option<StashKey> {
        let (_, key) = self.order.first_key_value()?;
        self.kept.get(key).filter(|kept| wanted(kept)).map(|_| *key)
    }

    fn remove(&mut self, key: StashKey) -> Option<Kept<S>> {
        let kept = self.subtract(key)?;
        self.order.remove(&kept.number);
        if let Some(open) = self.open.get_mut(&key.0) {
            open.stashes.remove(&key.1);
        }
        Some(kept)
    }

    /// Takes one out of what its party holds.
    fn subtract(&mut self, key: StashKey) -> Option<Kept<S>> {
        let kept = self.kept.remove(&key)?;
        self.shares.give(kept.party, kept.size.bytes);
        if let Some(held) = self.of_party.get_mut(&kept.party) {
            held.whole.remove(&kept.number);
            held.reduced.remove(&kept.number);
            if held.is_empty() {
                self.of_party.remove(&kept.party);
            }
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests;
