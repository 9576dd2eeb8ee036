//! Many clients that ask one server for more than it can do, each in its own way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use petals_protocol::{
    ForwardRequest, FrameLimits, Injection, ModelId, PassLayout, Refusal, Request, Response, RowSource, RowTarget,
    Span, TableSource, Tensor, WireDtype,
};
use petals_swarm::{Identity, PeerId, RequestStream, SwarmConfig, SwarmNode};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

mod leech;

/// Longest wait for an answer: a queue of large passes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one client always keeps under way.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    /// Requests at a time.
    pub in_flight: usize,
    /// Rows of each.
    pub rows: u32,
}

/// What one client got.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// What it asked for.
    pub habit: Habit,
    /// Passes answered while it was counted.
    pub passes: u64,
    /// Rows times blocks of them.
    pub row_blocks: u64,
    /// Times it was told to come back later.
    pub busy: u64,
}

/// The server under load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Where it listens, ending in `/p2p/` and its id.
    pub address: String,
    /// What it hosts.
    pub model: ModelId,
    /// All of its blocks.
    pub span: Span,
    /// Width of the hidden states.
    pub hidden: usize,
}

#[derive(Debug, Default)]
struct Counts {
    passes: AtomicU64,
    busy: AtomicU64,
}

/// Loads a server with a client for each of `habits`, every one a node of its own, for `warm_up` and then for `counted`,
/// of which it returns what each client got. Beside them so many `leeches`, at an address of their own, take what they can get.
///
/// # Errors
/// Any answer but a result or `Busy`, and any lost connection.
pub async fn load(
    target: &Target,
    habits: &[Habit],
    leeches: usize,
    warm_up: Duration,
    counted: Duration,
) -> anyhow::Result<Vec<Share>> {
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut clients, mut counts, mut nodes) = (JoinSet::new(), Vec::new(), Vec::new());
    let (address, peer) = target.address.rsplit_once("/p2p/").context("an address without a peer id")?;
    let (addresses, peer): (_, PeerId) = ([address.parse()?], peer.parse()?);
    for habit in habits {
        let (node, _) = SwarmNode::start(Identity::generate(), SwarmConfig::client()).await?;
        let stream = RequestStream::new(node.open_stream(peer, &addresses, PATIENCE).await?);
        let hello = Request::Hello { model: target.model.clone() };
        let answer = stream.request(hello, Vec::new(), 0, PATIENCE).await?.0;
        anyhow::ensure!(matches!(answer, Response::Welcome(_)), "{answer:?}");
        let (stream, count) = (Arc::new(stream), Arc::new(Counts::default()));
        for _ in 0..habit.in_flight {
            let (stream, count) = (stream.clone(), count.clone());
            let (counting, stop, target, rows) = (counting.clone(), stop.clone(), target.clone(), habit.rows);
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let done = ask(&stream, &target, rows).await?;
                    if counting.load(Ordering::Relaxed) {
                        let counter = if done { &count.passes } else { &count.busy };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
                anyhow::Ok(())
            });
        }
        counts.push(count);
        nodes.push(node);
    }
    let _leeches = leech::start(target, (peer, addresses.to_vec()), leeches, &stop);
    let ended = async {
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        bail!("all clients ended")
    };
    let timed = async {
        tokio::time::sleep(warm_up).await;
        counting.store(true, Ordering::Relaxed);
        tokio::time::sleep(counted).await;
        counting.store(false, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::select! {
        result = timed => result?,
        result = ended => result?,
    }
    stop.store(true, Ordering::Relaxed);
    drop(clients);
    let share = |(habit, count): (&Habit, Arc<Counts>)| {
        let passes = count.passes.load(Ordering::Relaxed);
        let row_blocks = passes * u64::from(habit.rows) * target.span.len() as u64;
        Share { habit: *habit, passes, row_blocks, busy: count.busy.load(Ordering::Relaxed) }
    };
    let shares = habits.iter().zip(counts).map(share).collect();
    for node in nodes {
        node.shutdown().await;
    }
    Ok(shares)
}

/// One forward. `false` if the server is busy; the hinted time is over then.
async fn ask(stream: &RequestStream, target: &Target, rows: u32) -> anyhow::Result<bool> {
    let layout = PassLayout {
        span: target.span,
        lengths: vec![rows],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: Some(vec![rows - 1]),
    };
    let request = ForwardRequest {
        layout,
        tables: TableSource::Inline,
        stash: None,
        input: RowSource::Inline,
        output: RowTarget::Reply,
        reply_dtype: WireDtype::F32,
        deadline_ms: PATIENCE.as_millis() as u32,
    };
    let shape = [rows as usize, target.hidden];
    let text = Tensor::from_f32(WireDtype::Bf16, &shape, &vec![0.1; shape[0] * shape[1]]);
    match stream.request(Request::Forward(request), vec![text], FrameLimits::default().max_body, PATIENCE).await?.0 {
        Response::Forward(_) => Ok(true),
        Response::Refused(Refusal::Busy { retry_after_ms }) => {
            tokio::time::sleep(Duration::from_millis(retry_after_ms.into())).await;
            Ok(false)
        }
        other => bail!("not an answer for a client under load: {other:?}"),
    }
}

/// The largest share of work beside the smallest.
pub fn unfairness(shares: &[Share]) -> f64 {
    let work = || shares.iter().map(|share| share.row_blocks);
    work().max().unwrap_or(0) as f64 / work().min().unwrap_or(0).max(1) as f64
}
