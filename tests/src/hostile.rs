//! A server that misbehaves in one chosen way and is honest otherwise.
//!
//! It announces a span like any server and lets an honest server of the same span compute what it is asked for, so that
//! only the chosen thing is wrong. It keeps to the protocol of relays too: what goes wrong in a chain is passed on.

mod serve;
mod tamper;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use petals_protocol::{ModelId, Refusal, ServerInfo, ServerState, Span};
use petals_swarm::{Identity, Multiaddr, PeerId, SwarmConfig, SwarmHandle, SwarmNode};
use tokio::task::JoinHandle;

use serve::Service;

/// What is wrong with the answers to forwards and backwards.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// Nothing.
    None,
    /// Finite values of the right shape that have nothing to do with the question.
    Noise,
    /// Right values times this.
    Scaled(f32),
    /// The first answer of each shape, again and again.
    Stale,
    /// One value is NaN.
    NotFinite,
    /// One value of the gradients, or of all tensors, is the largest that f32 holds.
    Absurd {
        /// Only in answers to backwards.
        backward: bool,
    },
    /// The first tensor has a row too few.
    WrongShape,
    /// No tensors.
    NoTensors,
    /// A tensor more than the answer has.
    TooManyTensors,
    /// An answer to another kind of request.
    WrongKind,
    /// The answer's frame ends in the middle, and the stream with it.
    Truncated,
    /// Bytes that are no frame.
    Garbage,
    /// A frame that claims to have 2^62 bytes of tensors.
    Oversized,
    /// The answers of others: the id is one that was not asked under.
    WrongId,
    /// No answer, ever.
    Hang,
    /// A byte of the answer every so often.
    Trickle(Duration),
    /// The right answer, so much later.
    Slow(Duration),
    /// The right answer, so much later, which is said to have taken no time at all.
    SlowForFree(Duration),
    /// No answer, ever, but so often one that nobody asked for.
    Chatter(Duration),
    /// The stream is closed without an answer.
    HangUp,
    /// This refusal.
    Refuse(Refusal),
    /// Not even the greeting is answered.
    Mute,
    /// The greeting tells of another span than is announced.
    OtherSpan(Span),
    /// The greeting tells of another model than is announced.
    OtherModel(ModelId),
}

/// A running server of this kind. It stops when dropped.
#[derive(Debug)]
pub struct HostileServer {
    swarm: SwarmHandle,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    info: ServerInfo,
    misbehaviour: Mutex<Misbehaviour>,
    passes: AtomicUsize,
    misdeeds: AtomicUsize,
    without_stash: AtomicUsize,
}

impl HostileServer {
    /// Announces `span` of `model`, as a server that is faster than any other, in the swarm that `member` belongs to, an
    /// address of it ending in `/p2p/…`. An honest server of the whole span must be in that swarm already.
    ///
    /// # Errors
    /// If the node does not come up, or there is no honest server.
    pub async fn start(
        member: &Multiaddr,
        model: &ModelId,
        span: Span,
        misbehaviour: Misbehaviour,
    ) -> anyhow::Result<Self> {
        Self::start_as(member, model, span, misbehaviour, |info| info).await
    }

    /// As [`Self::start`], announcing and greeting with something else than usual.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_as(
        member: &Multiaddr,
        model: &ModelId,
        span: Span,
        misbehaviour: Misbehaviour,
        pose: impl FnOnce(ServerInfo) -> ServerInfo,
    ) -> anyhow::Result<Self> {
        Self::start_posing(&"/ip4/127.0.0.1/tcp/0".parse()?, member, model, span, misbehaviour, pose).await
    }

    /// As [`Self::start`], at an address of another network than loopback.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at(
        listen: &Multiaddr,
        member: &Multiaddr,
        model: &ModelId,
        span: Span,
        misbehaviour: Misbehaviour,
    ) -> anyhow::Result<Self> {
        Self::start_posing(listen, member, model, span, misbehaviour, |info| info).await
    }

    async fn start_posing(
        listen: &Multiaddr,
        member: &Multiaddr,
        model: &ModelId,
        span: Span,
        misbehaviour: Misbehaviour,
        pose: impl FnOnce(ServerInfo) -> ServerInfo,
    ) -> anyhow::Result<Self> {
        let config = SwarmConfig { listen: vec![listen.clone()], peers: vec![member.clone()], ..SwarmConfig::server() };
        let (swarm, mut incoming) = SwarmNode::start(Identity::generate(), config).await?;
        swarm.wait_connected(Duration::from_secs(10)).await?;
        let honest = honest(&swarm, model, span).await?;
        let info = pose(ServerInfo {
            forward_tokens_per_s: Some(1e8),
            dtype: "f32".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ServerInfo::new(model.clone(), span, ServerState::Online)
        });
        let misbehaviour = Mutex::new(misbehaviour);
        let [passes, misdeeds, without_stash] = [(); 3].map(|()| AtomicUsize::new(0));
        let shared = Arc::new(Shared { info: info.clone(), misbehaviour, passes, misdeeds, without_stash });
        let service = Arc::new(Service::new(swarm.clone(), shared.clone(), honest));
        let task = tokio::spawn(async move {
            let mut streams = tokio::task::JoinSet::new();
            while let Some(incoming) = incoming.next().await {
                // How a stream ends is the other side's affair.
                streams.spawn(service.clone().serve(incoming.stream));
                while streams.try_join_next().is_some() {}
            }
        });
        swarm.announce(info).await?;
        Ok(Self { swarm, shared, task })
    }

    /// Its node: to know its peer id, or to announce something else.
    pub fn swarm(&self) -> &SwarmHandle {
        &self.swarm
    }

    /// What it announced.
    pub fn info(&self) -> &ServerInfo {
        &self.shared.info
    }

    /// Does this from now on.
    pub fn misbehave(&self, misbehaviour: Misbehaviour) {
        *self.shared.misbehaviour.lock().unwrap_or_else(PoisonError::into_inner) = misbehaviour;
    }

    /// Forwards and backwards that it was asked for.
    pub fn passes(&self) -> usize {
        self.shared.passes.load(Ordering::Relaxed)
    }

    /// Forwards that asked for no stash, and backwards that named none.
    pub fn without_stash(&self) -> usize {
        self.shared.without_stash.load(Ordering::Relaxed)
    }

    /// Times that it did what it should not.
    pub fn misdeeds(&self) -> usize {
        self.shared.misdeeds.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn misbehaviour(&self) -> Misbehaviour {
        self.misbehaviour.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count_misdeed(&self) {
        self.misdeeds.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server of the whole span, as the directory knows it.
async fn honest(swarm: &SwarmHandle, model: &ModelId, span: Span) -> anyhow::Result<(PeerId, Vec<Multiaddr>)> {
    for _ in 0..100 {
        let entries = swarm.lookup(model, span).await.unwrap_or_default();
        // Others of this kind do not say where they compute.
        let usable =
            |info: &ServerInfo| info.state == ServerState::Online && info.span.covers(span) && !info.device.is_empty();
        if let Some(entry) = entries.into_iter().find(|entry| usable(&entry.info)) {
            return Ok((entry.peer, entry.addresses));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("no honest server of {span}")
}
