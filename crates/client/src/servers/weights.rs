//! Which weights are used, where servers of one model have different ones.
//!
//! A model's id says nothing of its weights' values, so a fine-tune in a folder of the same name looks like the model. Servers tell a hash for each
//! block. Either the user says which they must be, or those are taken that most have, counted by networks and not by peers, of which anybody
//! can make as many as they like. Hashes that one server tells together belong to one copy of the model; copies are never mixed, and once one
//! was used this client stays with it. A hash is a server's word: it finds mistakes, and liars only where results are verified too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use petals_protocol::{ModelId, ServerInfo, ServerState, Span, WeightsHash};
use petals_swarm::{DirectoryEntry, PeerId, network_of};

use crate::lock::lock;
use crate::planner::Exclusion;

/// Copies of a model that are tried for one that covers all blocks. Honest swarms have one, and now and then two.
const COPIES: usize = 16;
/// Longest file of hashes that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Begins the line that names the model.
const MODEL: &str = "model ";

/// The hashes of all blocks of a model, as the user has them from somebody they trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownWeights {
    model: ModelId,
    hashes: Vec<WeightsHash>,
}

/// Why a text does not say what a model's weights are.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum KnownWeightsError {
    /// A line is not of the format.
    #[error(
        "line {line} is no block with the hash of its weights ({reason}): `petals-tune fingerprint` writes such files"
    )]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// They are of another model.
    #[error("these are the weights of {found}, and the model is {wanted}")]
    OtherModel {
        /// Whose they are.
        found: ModelId,
        /// Whose were wanted.
        wanted: ModelId,
    },
    /// The file cannot be read.
    #[error("the weights in {} cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// Some block has no hash.
    #[error("block {0} has no hash: all blocks of the model must have one")]
    Missing(u32),
}

impl KnownWeights {
    /// The hashes of all blocks of `model`, in their order.
    pub fn new(model: ModelId, hashes: Vec<WeightsHash>) -> Self {
        Self { model, hashes }
    }

    /// Reads what [`Self`] prints: a line `model ID`, and for each block a line with its number and its hash. Empty lines and those that begin
    /// with `#` say nothing.
    ///
    /// # Errors
    /// [`KnownWeightsError`] for what is wrong, or if that is not `model` with all of `blocks`. Names may differ: the same files have another
    /// name elsewhere.
    pub fn parse(text: &str, model: &ModelId, blocks: Span) -> Result<Self, KnownWeightsError> {
        let mut hashes = BTreeMap::new();
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
            let wrong = |reason: String| KnownWeightsError::Line { line: number, reason };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(found) = line.strip_prefix(MODEL) {
                let found: ModelId = found.trim().parse().map_err(|_| wrong("no id of a model".to_owned()))?;
                if found.fingerprint() != model.fingerprint() {
                    return Err(KnownWeightsError::OtherModel { found, wanted: model.clone() });
                }
                continue;
            }
            let (block, hash) = line.split_once(char::is_whitespace).ok_or_else(|| wrong("two words".to_owned()))?;
            let block: u32 = block.parse().map_err(|_| wrong("its number".to_owned()))?;
            if !blocks.contains(block) {
                return Err(wrong(format!("the model has blocks {blocks}")));
            }
            let hash = hash.trim().parse().map_err(|_| wrong("24 hexadecimal digits".to_owned()))?;
            if hashes.insert(block, hash).is_some_and(|before| before != hash) {
                return Err(wrong(format!("block {block} was said to be others before")));
            }
        }
        let of = |block| hashes.get(&block).copied().ok_or(KnownWeightsError::Missing(block));
        Ok(Self { model: model.clone(), hashes: blocks.blocks().map(of).collect::<Result<_, _>>()? })
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`KnownWeightsError::Io`].
    pub fn load(path: &Path, model: &ModelId, blocks: Span) -> Result<Self, KnownWeightsError> {
        let failed = |source| KnownWeightsError::Io { path: path.to_owned(), source: Arc::new(source) };
        let mut text = String::new();
        File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text, model, blocks)
    }

    /// Whose they are.
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Every block with its hash.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, WeightsHash)> {
        (0..).zip(self.hashes.iter().copied())
    }

    /// As servers tell them.
    fn chosen(&self) -> Chosen {
        self.blocks().map(|(block, hash)| (block, hash.as_told(self.hashes.len()))).collect()
    }
}

impl fmt::Display for KnownWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MODEL}{}", self.model)?;
        self.blocks().try_for_each(|(block, hash)| writeln!(f, "{block} {hash}"))
    }
}

/// The hash that each block must have.
type Chosen = BTreeMap<u32, WeightsHash>;

/// Who counts as one voice: a network, or a peer that has no address but on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Voice {
    Network(IpAddr),
    Peer(PeerId),
}

/// The weights in use.
#[derive(Debug)]
pub(crate) struct Weights {
    blocks: Span,
    given: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chosen: Chosen,
    /// Some were used: they stay.
    used: bool,
    /// Who was found to have others.
    others: HashSet<PeerId>,
    told: HashSet<PeerId>,
}

impl Weights {
    /// Of a model with `blocks`: those given, or those that most servers have.
    pub(crate) fn new(blocks: Span, given: Option<&KnownWeights>) -> Self {
        let chosen = given.map(KnownWeights::chosen).unwrap_or_default();
        Self { blocks, given: given.is_some(), state: Mutex::new(State { chosen, ..State::default() }) }
    }

    /// Learns which weights there are.
    pub(crate) fn learn<'a>(&self, servers: impl Iterator<Item = &'a DirectoryEntry>) {
        let online = servers.filter(|entry| entry.info.state == ServerState::Online);
        let online: Vec<(Voice, &DirectoryEntry)> = online.map(|entry| (voice(entry), entry)).collect();
        let mut state = lock(&self.state);
        if !self.given {
            let infos: Vec<(Voice, &ServerInfo)> = online.iter().map(|(voice, entry)| (*voice, &entry.info)).collect();
            let kept = if state.used { std::mem::take(&mut state.chosen) } else { Chosen::new() };
            state.chosen = choose(self.blocks, &infos, kept);
        }
        let others = online.iter().filter(|(_, entry)| self.exclude(&state.chosen, &entry.info).is_some());
        state.others = others.map(|(_, entry)| entry.peer).collect();
    }

    /// Why a server may not be used, if its weights are the reason.
    pub(crate) fn exclusion(&self, info: &ServerInfo) -> Option<Exclusion> {
        self.exclude(&lock(&self.state).chosen, info)
    }

    fn exclude(&self, chosen: &Chosen, info: &ServerInfo) -> Option<Exclusion> {
        match info.weights {
            None => self.given.then_some(Exclusion::UnnamedWeights),
            Some(_) => (!agrees(chosen, info)).then_some(Exclusion::OtherWeights),
        }
    }

    /// A server did what it was asked for: from now on its weights are the ones.
    pub(crate) fn used(&self) {
        lock(&self.state).used = true;
    }

    /// The servers that have other weights, if some of them were not told of before.
    pub(crate) fn news(&self) -> Option<Vec<PeerId>> {
        let state = &mut *lock(&self.state);
        if state.others.is_subset(&state.told) {
            return None;
        }
        state.told.extend(&state.others);
        let mut others: Vec<PeerId> = state.others.iter().copied().collect();
        others.sort();
        Some(others)
    }
}

fn voice(entry: &DirectoryEntry) -> Voice {
    network_of(&entry.addresses).map_or(Voice::Peer(entry.peer), Voice::Network)
}

/// The hashes that a server tells, by block.
fn told(info: &ServerInfo) -> impl Iterator<Item = (u32, WeightsHash)> {
    let hashes = info.weights.iter().flat_map(|weights| weights.as_slice());
    info.span.blocks().zip(hashes.copied())
}

/// Whether no block of a server is another one than chosen.
fn agrees(chosen: &Chosen, info: &ServerInfo) -> bool {
    told(info).all(|(block, hash)| chosen.get(&block).is_none_or(|chosen| *chosen == hash))
}

/// The weights to use, of which `kept` are decided already: those of the copy that most voices have, of such as cover whatever is served at
/// all. The same for every client that sees the same servers.
fn choose(blocks: Span, servers: &[(Voice, &ServerInfo)], kept: Chosen) -> Chosen {
    let infos = || servers.iter().map(|(_, info)| *info);
    let mut chosen = kept.clone();
    // As it should be: all say the same.
    let agreed = infos().all(|info| {
        let agreed = agrees(&chosen, info);
        chosen.extend(told(info).filter(|_| agreed));
        agreed
    });
    if agreed {
        return chosen;
    }
    let copies = copies(servers, &kept);
    let mut best = None;
    for first in 0..copies.len().min(COPIES) {
        let mut chosen = kept.clone();
        let in_order = std::iter::once(&copies[first]).chain(copies.iter().filter(|copy| **copy != copies[first]));
        for info in in_order.flatten().map(|&number| servers[number].1) {
            if agrees(&chosen, info) {
                chosen.extend(told(info));
            }
        }
        let held = |block| infos().any(|info| info.span.contains(block) && agrees(&chosen, info));
        let missing = |block: &u32| !held(*block) && infos().any(|info| info.span.contains(*block));
        if !blocks.blocks().any(|block| missing(&block)) {
            return chosen;
        }
        best.get_or_insert(chosen);
    }
    best.unwrap_or(kept)
}

/// Servers by the copy that they have, the one that most voices speak for first, and so those of each. What was decided comes before everything.
fn copies(servers: &[(Voice, &ServerInfo)], kept: &Chosen) -> Vec<Vec<usize>> {
    let mut voices: HashMap<(u32, WeightsHash), HashSet<Voice>> = HashMap::new();
    // The copy of each server, by the first one that has it.
    let mut copy_of: Vec<usize> = (0..servers.len()).collect();
    let mut first_with: HashMap<(u32, WeightsHash), usize> = HashMap::new();
    fn root(copy_of: &mut [usize], mut number: usize) -> usize {
        while copy_of[number] != number {
            copy_of[number] = copy_of[copy_of[number]];
            number = copy_of[number];
        }
        number
    }
    for (number, (voice, info)) in servers.iter().enumerate() {
        for part in told(info) {
            voices.entry(part).or_default().insert(*voice);
            let other = root(&mut copy_of, *first_with.entry(part).or_insert(number));
            let own = root(&mut copy_of, number);
            copy_of[own.max(other)] = own.min(other);
        }
    }
    let weight = |info: &ServerInfo| told(info).map(|part| voices[&part].len()).sum::<usize>();
    let hashes = |number: usize| told(servers[number].1).collect::<Vec<_>>();
    let mut copies: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for number in (0..servers.len()).filter(|&number| servers[number].1.weights.is_some()) {
        copies.entry(root(&mut copy_of, number)).or_default().push(number);
    }
    let mut copies: Vec<Vec<usize>> = copies.into_values().collect();
    for copy in &mut copies {
        // By block, so that a server of many blocks does not come before one whose few blocks more have.
        let rank = |&number: &usize| {
            let info = servers[number].1;
            (std::cmp::Reverse(weight(info) / info.span.len()), hashes(number))
        };
        copy.sort_by_cached_key(rank);
    }
    let rank = |copy: &Vec<usize>| {
        let parts: HashSet<(u32, WeightsHash)> = copy.iter().flat_map(|&number| told(servers[number].1)).collect();
        let decided = parts.iter().any(|(block, hash)| kept.get(block) == Some(hash));
        let support: usize = parts.iter().map(|part| voices[part].len()).sum();
        (!decided, std::cmp::Reverse(support), copy.iter().map(|&number| hashes(number)).min())
    };
    copies.sort_by_cached_key(rank);
    copies
}

#[cfg(test)]
mod tests;
