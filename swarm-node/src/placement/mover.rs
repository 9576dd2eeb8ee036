//! A server that looks around from time to time and moves to where it is needed more.
//!
//! Nothing coordinates servers, so a move is announced before it begins: whoever decides later counts it as done. Two that
//! announced at the same time see each other when they look again: the one with the lower id goes, the other one thinks
//! again. A server serves what it has until it has what it moves to, and in the last moment looks once more whether
//! somebody else holds what it leaves.
//!
//! Nobody's word is enough for that: first the records say whether a move would be worth it, then those who say that they hold what would be left
//! are asked for rows (`holders.rs`), and then it is decided again, with those who answered rightly.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use petals_model::{BlockStack, Checkpoint, Division};
use petals_protocol::{BlockHashes, ServerState, Span};
use petals_swarm::{DirectoryEntry, PeerId, SwarmHandle, network_of};

use super::coverage::{Claim, Coverage, neighbourhood, rate};
use super::figures::put_speed;
use super::holders::{Found, Holders};
use super::hosted::Hosted;
use super::presence::Presence;
use crate::executor::ExecutorHandle;
use crate::machine::division;
use crate::machine::memory::Free;
use crate::machine::speed::Speed;

/// Longest time between an announced move and the look that confirms it: others' announcements need seconds.
const LONGEST_SETTLING: Duration = Duration::from_secs(15);
/// Stashes and passes of the span that was left are waited for so long; their clients replay what comes later.
const DRAIN: Duration = Duration::from_secs(60);
/// Time between looks whether they are gone.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// When a server looks for a better place.
#[derive(Debug, Clone, Copy)]
pub struct RebalanceConfig {
    /// Mean time between two looks. Each waits between a half and three halves of it, so that servers that started
    /// together do not decide together.
    pub period: Duration,
}

/// The task of one server.
#[derive(Debug)]
pub(crate) struct Mover {
    config: RebalanceConfig,
    swarm: SwarmHandle,
    hosted: Arc<Hosted>,
    executor: ExecutorHandle,
    speed: Arc<Speed>,
    checkpoint: Arc<Checkpoint>,
    holders: Holders,
    presence: Presence,
}

/// What is enough for a server to count as one that holds its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Its record.
    Word,
    /// That it answered rightly.
    Answer,
}

/// How others that announced a move are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// All go where they say.
    Go,
    /// Those with a higher id than this server's wait for it.
    Yield,
}

impl Mover {
    /// A server that has not looked around yet.
    pub(crate) fn new(
        config: RebalanceConfig,
        swarm: SwarmHandle,
        hosted: Arc<Hosted>,
        (executor, speed): (ExecutorHandle, Arc<Speed>),
        checkpoint: Arc<Checkpoint>,
    ) -> Self {
        let holders = Holders::new(swarm.clone(), hosted.clone(), executor.clone());
        Self { config, swarm, hosted, executor, speed, checkpoint, holders, presence: Presence::default() }
    }

    /// Looks and moves for ever. Dropping this between two steps of a move leaves a server that serves one of both spans.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(self.config.period.mul_f64(0.5 + random())).await;
            let here = self.hosted.span();
            let Some(there) = self.look(here, Others::Go).await else { continue };
            tracing::info!(%here, %there, "other blocks are served worse: announcing a move");
            if let Err(error) = self.move_to(here, there).await {
                tracing::warn!("the move to blocks {there} failed: {error:#}");
                self.stay(here).await;
            }
        }
    }

    /// Where this server should be.
    async fn look(&self, here: Span, others: Others) -> Option<Span> {
        let info = self.hosted.info();
        if info.state != ServerState::Online {
            return None;
        }
        let (entries, rate) = (self.others().await?, rate(&info)?);
        let there = self.coverage(&entries, others, Proof::Word).better(here, rate)?;
        self.holders.ask(&entries, here, there).await;
        self.coverage(&entries, others, Proof::Answer).better(here, rate)
    }

    /// The other servers. `None` if the directory does not say: nobody moves on a guess.
    async fn others(&self) -> Option<Vec<DirectoryEntry>> {
        let (model, all) = (self.hosted.model(), self.checkpoint.blocks());
        let local = self.swarm.local_peer();
        let found = self.swarm.lookup(&model, all).await;
        let mut found =
            found.inspect_err(|error| tracing::debug!(%error, "cannot look where blocks are missing")).ok()?;
        found.retain(|entry| entry.peer != local && self.holders.found(&entry.peer) != Some(Found::Not));
        Some(self.presence.present(&self.swarm, found).await)
    }

    /// What they offer.
    fn coverage(&self, entries: &[DirectoryEntry], others: Others, proof: Proof) -> Coverage {
        let local = self.swarm.local_peer();
        let counted = |entry: &DirectoryEntry| self.claims(entry, local, others, proof);
        let claims: Vec<Claim> = entries.iter().flat_map(counted).collect();
        Coverage::of(self.checkpoint.blocks().end(), rate(&self.hosted.info()), &claims)
    }

    async fn move_to(&self, here: Span, there: Span) -> anyhow::Result<()> {
        self.hosted.change(|now| now.info.moving_to = Some(there));
        self.hosted.tell(&self.swarm).await?;
        tokio::time::sleep(LONGEST_SETTLING.min(self.config.period / 4)).await;
        if self.look(here, Others::Yield).await != Some(there) {
            tracing::info!(%here, "others are on their way: staying");
            self.stay(here).await;
            return Ok(());
        }
        let old = self.executor.blocks().context("no blocks are loaded")?;
        let started = Instant::now();
        // What has to come from elsewhere comes while the old span is served.
        let files = self.checkpoint.clone();
        tokio::task::spawn_blocking(move || files.supply(there)).await.context("fetching was interrupted")??;
        let (held, division) = (old.division(), old.division().moved(there));
        let needed = division::weights_beside(&self.checkpoint, &division, &held);
        let free = Free::on(division.parts().iter().map(|(_, place)| &place.device));
        let moved = if free.holds(&needed) {
            self.load_beside(&old, there).await?
        } else {
            self.load_instead(old, there).await?
        };
        if moved {
            tracing::info!(%here, %there, seconds = started.elapsed().as_secs_f64(), "moved");
        }
        Ok(())
    }

    /// Loads while the old span is served, then switches from one request to the next. `false` if it has to stay.
    async fn load_beside(&self, old: &Arc<BlockStack>, there: Span) -> anyhow::Result<bool> {
        let here = old.span();
        let blocks = self.load(Some(old.clone()), old.division().moved(there)).await?;
        if !self.may_leave(here, there).await {
            self.stay(here).await;
            return Ok(false);
        }
        // First what computes, then what requests are held to: at no moment is a request taken that cannot be run.
        self.executor.switch(blocks);
        self.hosted.change(|now| {
            now.retiring = Some(here);
            now.serve(there, weights_of(&self.checkpoint, there));
            now.info.moving_to = None;
            put_speed(&mut now.info, &self.speed);
        });
        self.hosted.tell(&self.swarm).await?;
        self.drained(there).await;
        self.hosted.change(|now| now.retiring = None);
        self.executor.retire();
        Ok(true)
    }

    /// Where memory does not hold both: finishes what was begun, drops the old blocks, then loads. Others serve them
    /// meanwhile. `false` if it has to stay.
    async fn load_instead(&self, old: Arc<BlockStack>, there: Span) -> anyhow::Result<bool> {
        let here = old.span();
        if !self.may_leave(here, there).await {
            self.stay(here).await;
            return Ok(false);
        }
        self.hosted.change(|now| now.info.state = ServerState::Draining);
        self.hosted.tell(&self.swarm).await?;
        let nothing = Instant::now() + DRAIN;
        while (self.executor.depth() > 0 || self.executor.stash_bytes() > 0) && Instant::now() < nothing {
            tokio::time::sleep(DRAIN_TICK).await;
        }
        // What both spans have stays; of the rest not even a share is held here.
        let kept = old.part(there).map(Arc::new);
        let held = old.division();
        drop(old);
        self.executor.replace(kept.clone());
        let load = async |division: Division| self.load(kept.clone(), division).await;
        let loaded = load(held.moved(there)).await;
        let failed = loaded.as_ref().err().map(|error| format!("{error:#}"));
        let blocks = match loaded {
            Ok(blocks) => blocks,
            Err(_) => load(held).await.context("neither the new nor the old blocks can be loaded")?,
        };
        self.hosted.change(|now| now.serve(blocks.span(), weights_of(&self.checkpoint, blocks.span())));
        self.executor.replace(Some(blocks));
        self.hosted.change(|now| {
            now.info.state = ServerState::Online;
            now.info.moving_to = None;
            put_speed(&mut now.info, &self.speed);
        });
        self.hosted.tell(&self.swarm).await?;
        match failed {
            None => Ok(true),
            Some(error) => anyhow::bail!(error),
        }
    }

    /// Loads blocks to where a division says, sharing those that are there.
    async fn load(&self, there: Option<Arc<BlockStack>>, division: Division) -> anyhow::Result<Arc<BlockStack>> {
        let checkpoint = self.checkpoint.clone();
        tracing::info!(blocks = %division.span(), devices = division::words(&division), "loading");
        let load = move || checkpoint.load_division(&division, there.as_deref());
        Ok(Arc::new(tokio::task::spawn_blocking(load).await.context("loading was interrupted")??))
    }

    /// Whether others hold what would be left, and none of them is about to leave it.
    async fn may_leave(&self, here: Span, there: Span) -> bool {
        let Some(entries) = self.others().await else { return false };
        self.holders.ask(&entries, here, there).await;
        self.coverage(&entries, Others::Go, Proof::Answer).may_leave(here, there)
    }

    /// What an entry claims, as it is counted by the server with the id `local`: as far as its record goes, or as far as it was found to be right.
    fn claims(&self, entry: &DirectoryEntry, local: PeerId, others: Others, proof: Proof) -> Vec<Claim> {
        let mut info = entry.info.clone();
        if others == Others::Yield && entry.peer > local {
            info.moving_to = None;
        }
        let Some(claim) = Claim::of(&info, network_of(&entry.addresses).map(neighbourhood)) else { return Vec::new() };
        if proof == Proof::Word || !claim.holds {
            return vec![claim];
        }
        match self.holders.found(&entry.peer) {
            Some(Found::Not) => Vec::new(),
            // What both hold is proven, and the rest is not.
            Some(Found::Holds(proven)) => in_parts(claim, proven),
            None => vec![Claim { holds: false, ..claim }],
        }
    }

    async fn drained(&self, there: Span) {
        let deadline = Instant::now() + DRAIN;
        while self.executor.needs_more_than(there) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_TICK).await;
        }
    }

    /// Takes a move back.
    async fn stay(&self, here: Span) {
        tracing::debug!(%here, "staying");
        self.hosted.change(|now| now.info.moving_to = None);
        if let Err(error) = self.hosted.tell(&self.swarm).await {
            tracing::debug!(%error, "cannot take the announced move back");
        }
    }
}

/// What is told of the weights of blocks that were loaded.
pub(crate) fn weights_of(checkpoint: &Checkpoint, span: Span) -> Option<BlockHashes> {
    let hashes = checkpoint.weights_of(span);
    let hashes = hashes.inspect_err(|error| tracing::warn!("others are not told which weights these are: {error}"));
    BlockHashes::new(hashes.ok()?, checkpoint.blocks().len())
}

/// A claim in up to three parts, of which that in `proven` is held.
fn in_parts(claim: Claim, proven: Span) -> Vec<Claim> {
    let Some(both) = claim.span.intersect(proven) else { return vec![Claim { holds: false, ..claim }] };
    let part = |start, end, holds| Some(Claim { span: Span::new(start, end).ok()?, holds, ..claim });
    let (before, behind) = (part(claim.span.start(), both.start(), false), part(both.end(), claim.span.end(), false));
    [before, part(both.start(), both.end(), true), behind].into_iter().flatten().collect()
}

/// A number in 0..1 that differs between servers and moments.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    (RandomState::new().hash_one(nanos) >> 11) as f64 / (1u64 << 53) as f64
}
