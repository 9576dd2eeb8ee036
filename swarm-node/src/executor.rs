//! The thread that computes.
//!
//! Blocks are owned by an operating-system thread of their own, which lends them to others for long passes: a pass takes milliseconds to seconds and must never hold
//! a worker of the network runtime. Work arrives through a bounded queue that shares it among peers; a full queue is a
//! [`Refusal::Busy`] with a hint, not a longer wait.
//!
//! | file | subject |
//! |---|---|
//! | `executor.rs` | the handle that submits to the thread |
//! | `worker`, `background` | the thread, and others for what takes long |
//! | `pass` | what is submitted, and what comes of it |
//! | `queue`, `crowd`, `batch` | what runs next, and what runs together |
//! | `compute`, `steps`, `answer` | a pass of training, a step of sessions, and whoever asked for them |
//! | `beside`, `pauses` | what is computed while a long pass is, on processors at any moment, on other devices between two blocks |
//! | `alone` | moments in which nothing is computed for others |
//! | `stash`, `sessions`, `memory`, `prefixes` | what they leave behind for the next one |
//! | `work`, `told` | how much it was, and what is told of it |
//!
//! Apart from streams because nothing here is asynchronous or knows of frames: what arrives was checked and has its memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use petals_model::{BlockStack, Stash};
use petals_protocol::{Refusal, SessionId, Span, StashId};
use petals_swarm::Party;
use tokio::sync::oneshot;

use crate::lock::lock;
use crate::machine::rooms::Rooms;
use crate::machine::speed::Speed;

mod alone;
mod answer;
mod background;
mod batch;
mod beside;
mod compute;
mod crowd;
mod memory;
mod pass;
mod pauses;
mod prefixes;
mod queue;
mod sessions;
mod stash;
mod steps;
mod told;
mod work;
mod worker;

use beside::Long;
pub(crate) use pass::{Done, Inputs, Output, Pass, Tables, Work};
use prefixes::Prefixes;
use queue::FairQueue;
use sessions::SessionStore;
pub use stash::StashPolicy;
use stash::StashStore;
pub use work::WorkCount;
use work::{Share, WorkDone};
use worker::Worker;

/// Part of the memory for sessions that keeps prefixes which several of them begin with.
const PREFIX_PART: u64 = 8;

/// Bounds of the executor's queue and memory.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// Passes waiting, of all peers together.
    pub queue: usize,
    /// Passes waiting, of one peer.
    pub queue_per_peer: usize,
    /// Bytes kept of training forwards.
    pub stash_bytes: u64,
    /// Bytes that one pass may take beside weights and stashes.
    pub pass_bytes: u64,
    /// How long a stash is kept for a backward that does not come.
    pub stash_lifetime: Duration,
    /// Which levels of stashes are used.
    pub stash_policy: StashPolicy,
    /// Bytes of keys and values that inference sessions may keep.
    pub kv_bytes: u64,
    /// How long a session is kept that nobody uses.
    pub session_lifetime: Duration,
    /// Whether sessions of different peers share the pages of what they begin with.
    pub share_prefixes: bool,
    /// How the memory of stashes, passes and sessions is divided among the devices of the blocks.
    pub rooms: Rooms,
}

impl Default for ExecutorConfig {
    /// 256 passes, 64 of one peer, 1 GiB of stash of any level for at most 5 minutes, 4 GiB for a pass, 1 GiB for
    /// sessions that are used every 10 minutes, whose pages each peer has for itself; all of it in one memory.
    fn default() -> Self {
        Self {
            queue: 256,
            queue_per_peer: 64,
            stash_bytes: 1 << 30,
            pass_bytes: 4 << 30,
            stash_lifetime: Duration::from_secs(300),
            stash_policy: StashPolicy::Auto,
            kv_bytes: 1 << 30,
            session_lifetime: Duration::from_secs(600),
            share_prefixes: false,
            rooms: Rooms::default(),
        }
    }
}

type Reply = oneshot::Sender<Result<Done, Refusal>>;

#[derive(Debug)]
struct State {
    queue: FairQueue<Party, (Pass, Reply)>,
    /// The span of the pass that is being computed.
    running: Option<Span>,
    /// A long pass in the background, beside which others can be computed.
    long: Option<Long>,
    stopping: bool,
    /// How many want that nothing is computed for others.
    for_nobody: usize,
    /// What is served now and, while a node moves, behind it what it served before.
    stacks: Vec<Arc<BlockStack>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    stashes: Mutex<StashStore<Stash>>,
    sessions: Mutex<SessionStore>,
    prefixes: Mutex<Prefixes>,
    speed: Arc<Speed>,
    work: WorkDone,
    config: ExecutorConfig,
    /// Mean time of recent passes in microseconds, for the hint in `Busy`.
    mean_us: AtomicU64,
}

/// Owns the compute thread.
#[derive(Debug)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Submits passes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ExecutorHandle(Arc<Shared>);

impl Executor {
    /// Starts the thread that owns `blocks`; what it learns of their speed goes to `speed`.
    pub(crate) fn start(blocks: BlockStack, config: ExecutorConfig, speed: Arc<Speed>) -> std::io::Result<Self> {
        let queue = FairQueue::new(config.queue, config.queue_per_peer);
        let stacks = vec![Arc::new(blocks)];
        let shared = Arc::new(Shared {
            state: Mutex::new(State { queue, running: None, long: None, stopping: false, for_nobody: 0, stacks }),
            wake: Condvar::new(),
            speed,
            work: WorkDone::default(),
            stashes: Mutex::new(StashStore::new(config.stash_bytes, config.stash_lifetime, Stash::reduce)),
            sessions: Mutex::new(SessionStore::new(
                config.kv_bytes - config.kv_bytes / PREFIX_PART,
                config.session_lifetime,
            )),
            prefixes: Mutex::new(Prefixes::new(config.kv_bytes / PREFIX_PART, config.share_prefixes)),
            config,
            mean_us: AtomicU64::new(0),
        });
        let worker = Worker::new(shared.clone());
        let thread = std::thread::Builder::new().name("petals-blocks".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn handle(&self) -> ExecutorHandle {
        ExecutorHandle(self.shared.clone())
    }
}

impl Drop for Executor {
    /// Lets the running pass finish, refuses the waiting ones and joins the thread.
    fn drop(&mut self) {
        lock(&self.shared.state).stopping = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl ExecutorHandle {
    /// Queues a pass; its result arrives on the receiver.
    pub(crate) fn submit(&self, pass: Pass) -> Result<oneshot::Receiver<Result<Done, Refusal>>, Refusal> {
        let (reply, result) = oneshot::channel();
        let mut state = lock(&self.0.state);
        if state.stopping {
            return Err(Refusal::Draining);
        }
        alone::refuse_if_alone(&state)?;
        let waiting = state.queue.len() as u64 + 1;
        let share = Share::of(&pass);
        let hidden = state.stacks.first().map_or(1, |blocks| blocks.config().hidden_size);
        let (party, cost, urgent) = (
            pass.party,
            work::cost(&pass, hidden),
            !matches!(pass.work, Work::Forward { .. } | Work::KeysValues { .. }),
        );
        let wait_ms = waiting * self.0.mean_us.load(Ordering::Relaxed) / 1000 / 2;
        let busy = Refusal::Busy { retry_after_ms: wait_ms.clamp(10, 5_000) as u32 };
        match state.queue.push(party, (pass, reply), cost, urgent) {
            Ok(None) => {}
            Ok(Some((_, displaced))) => drop(displaced.send(Err(busy))),
            Err(_) => return Err(busy),
        }
        drop(state);
        self.0.work.add(share);
        self.0.wake.notify_one();
        Ok(result)
    }

    /// The blocks that are served.
    pub(crate) fn blocks(&self) -> Option<Arc<BlockStack>> {
        lock(&self.0.state).stacks.first().cloned()
    }

    /// From here on passes run on `blocks` where they can, and on what was there before where they must.
    pub(crate) fn switch(&self, blocks: Arc<BlockStack>) {
        lock(&self.0.state).stacks.insert(0, blocks);
    }

    /// Drops all blocks but those that are served, and stashes that only they could use.
    pub(crate) fn retire(&self) {
        let span = {
            let mut state = lock(&self.0.state);
            state.stacks.truncate(1);
            state.stacks.first().map(|blocks| blocks.span())
        };
        if let Some(span) = span {
            lock(&self.0.stashes).retain(|layout| span.covers(layout.span));
            lock(&self.0.sessions).retain(|of| span.covers(of));
        }
    }

    /// Runs nothing but `blocks` from here on, or nothing at all. Passes that need others are refused, stashes dropped.
    pub(crate) fn replace(&self, blocks: Option<Arc<BlockStack>>) {
        let span = blocks.as_ref().map(|blocks| blocks.span());
        lock(&self.0.state).stacks = blocks.into_iter().collect();
        lock(&self.0.stashes).retain(|layout| span.is_some_and(|span| span.covers(layout.span)));
        lock(&self.0.sessions).retain(|of| span.is_some_and(|span| span.covers(of)));
    }

    /// Whether a pass or a stash needs more than the blocks of `span`.
    pub(crate) fn needs_more_than(&self, span: Span) -> bool {
        let state = lock(&self.0.state);
        let mut running = state.running.into_iter().chain(state.long.map(|long| long.span));
        let running = running.any(|running| !span.covers(running));
        let waiting = || state.queue.iter().any(|(pass, _)| !span.covers(pass.layout.span));
        running || waiting() || lock(&self.0.stashes).any(|layout| !span.covers(layout.span))
    }

    /// Drops stashes and sessions that nobody came for in time.
    pub(crate) fn expire_stashes(&self) {
        lock(&self.0.stashes).expire(Instant::now());
        lock(&self.0.sessions).expire(Instant::now());
    }

    /// Ends a session of a stream.
    pub(crate) fn end_session(&self, stream: u64, session: SessionId) {
        lock(&self.0.sessions).end((stream, session));
    }

    /// Lets a stream of `party` leave stashes and have sessions.
    pub(crate) fn open_stream(&self, stream: u64, party: Party) {
        lock(&self.0.stashes).open_stream(stream, party);
        lock(&self.0.sessions).open_stream(stream);
    }

    /// Drops one stash of a stream.
    pub(crate) fn forget(&self, stream: u64, stash: StashId) {
        lock(&self.0.stashes).forget((stream, stash));
    }

    /// Drops everything a stream left behind.
    pub(crate) fn forget_stream(&self, stream: u64) {
        lock(&self.0.stashes).forget_stream(stream);
        lock(&self.0.sessions).forget_stream(stream);
    }
}

impl Shared {
    /// A pass took so long.
    fn record(&self, computed: Duration) {
        self.work.computed(computed);
        let new = computed.as_micros() as u64;
        let old = self.mean_us.load(Ordering::Relaxed);
        self.mean_us.store(if old == 0 { new } else { (7 * old + new) / 8 }, Ordering::Relaxed);
    }
}
