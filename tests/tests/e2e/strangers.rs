//! Strangers of every kind at once, beside an honest run that must not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{AsyncReadExt, AsyncWriteExt};
use petals_e2e::{Goldens, ProcessSwarm, assert_curves_close};
use petals_protocol::{
    Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, ModelId, Request, Response, Tensor, WireDtype,
};
use petals_swarm::{Identity, Multiaddr, PeerId, PeerStream, SwarmConfig, SwarmHandle, SwarmNode};
use tokio::io::AsyncWriteExt as _;

use crate::hostile::{forward, layout, rows};

const PATIENCE: Duration = Duration::from_secs(20);
/// Streams opened and dropped by one stranger.
const OPENS: usize = 10_000;
/// What a server may hold more after all this: allocators do not give everything back.
const MEMORY: u64 = 64 << 20;

/// A node of a stranger, and the server it is after.
#[derive(Clone)]
struct Stranger {
    node: SwarmHandle,
    server: PeerId,
    address: Multiaddr,
    socket: SocketAddr,
    model: ModelId,
    over: Arc<AtomicBool>,
}

impl Stranger {
    async fn new(swarm: &ProcessSwarm, server: usize, model: &ModelId, over: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        let (node, _) = SwarmNode::start(Identity::generate(), SwarmConfig::client()).await?;
        let server = &swarm.servers[server];
        let (socket, address) = (server.socket()?, server.address.parse::<Multiaddr>()?);
        let peer = server.address.rsplit('/').next().context("an address without a peer")?.parse()?;
        Ok(Self { node, server: peer, address, socket, model: model.clone(), over: over.clone() })
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    async fn open(&self) -> anyhow::Result<PeerStream> {
        Ok(self.node.open_stream(self.server, std::slice::from_ref(&self.address), PATIENCE).await?)
    }

    async fn greeted(&self) -> anyhow::Result<PeerStream> {
        let mut stream = self.open().await?;
        let hello = Request::Hello { model: self.model.clone() };
        anyhow::ensure!(matches!(ask(&mut stream, &hello, &[]).await?, Response::Welcome(_)), "no greeting");
        Ok(stream)
    }
}

async fn ask(stream: &mut PeerStream, request: &Request, tensors: &[Tensor]) -> anyhow::Result<Response> {
    FrameWriter::new(&mut *stream, FrameKind::Request).write(1, request, tensors).await?;
    let mut reader = FrameReader::new(stream, FrameKind::Response, FrameLimits::default());
    let answer: Frame<Response> = tokio::time::timeout(PATIENCE, reader.read()).await??;
    Ok(answer.message)
}

async fn whole_frame(request: &Request, tensors: &[Tensor]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    FrameWriter::new(&mut bytes, FrameKind::Request).write(1, request, tensors).await?;
    Ok(bytes)
}

/// Bytes that are no frames, too large to be accepted, or end too early. Returns how many streams it wasted.
async fn broken_frames(stranger: Stranger) -> anyhow::Result<usize> {
    let mut count = 0;
    while stranger.goes_on() {
        let whole = whole_frame(&forward(layout((0, 1), &[2])), &[rows(2, 32, 0.1)]).await?;
        let bytes = match count % 5 {
            0 => (0..3000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
            // Lengths of header and body.
            1 => [&whole[..16], &[0xff; 12], &whole[28..]].concat(),
            2 => [&whole[..20], &(1u64 << 40).to_le_bytes(), &whole[28..]].concat(),
            3 => whole[..whole.len() - 100].to_vec(),
            // The tensor's own description claims more than there is.
            _ => whole.iter().map(|&byte| if byte == 32 { 255 } else { byte }).collect(),
        };
        let mut stream = if count % 2 == 0 { stranger.open().await? } else { stranger.greeted().await? };
        // The server may hang up before everything is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.close().await;
        count += 1;
        // A peer that opens more than 16 streams a second is refused some of them: `opens` is about that.
        tokio::time::sleep(Duration::from_millis(65)).await;
    }
    Ok(count)
}

/// Requests that are frames but make no sense. Every one is refused by type, on a stream that goes on.
async fn wrong_requests(stranger: Stranger) -> anyhow::Result<usize> {
    let mut stream = stranger.greeted().await?;
    let mut count = 0;
    while stranger.goes_on() {
        let wrong: [(Request, Vec<Tensor>); 5] = [
            (forward(layout((0, 1000), &[1])), vec![rows(1, 32, 0.1)]),
            (forward(layout((0, 1), &[1])), vec![rows(1, 32, f32::NAN)]),
            (forward(layout((0, 1), &[9])), vec![rows(1, 32, 0.1)]),
            (forward(layout((0, 1), &[u32::MAX])), vec![]),
            (forward(layout((0, 1), &[1])), vec![Tensor::from_f32(WireDtype::F32, &[32], &[0.1; 32])]),
        ];
        for (request, tensors) in &wrong {
            let answer = ask(&mut stream, request, tensors).await?;
            anyhow::ensure!(matches!(answer, Response::Refused(_)), "not refused: {answer:?}");
            count += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(count)
}

/// As many streams as one peer may have, each with a byte of a greeting now and then, until the server ends them.
async fn slow_streams(stranger: Stranger) -> anyhow::Result<usize> {
    let hello = whole_frame(&Request::Hello { model: stranger.model.clone() }, &[]).await?;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (mut stream, hello) = (stranger.open().await?, hello.clone());
        slow.spawn(async move {
            let started = Instant::now();
            for byte in hello {
                if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
                // Returns as soon as the server has ended the stream.
                let ended = tokio::time::timeout(Duration::from_millis(700), stream.read(&mut [0; 64])).await;
                if ended.is_ok() {
                    break;
                }
            }
            started.elapsed()
        });
    }
    let mut count = 0;
    while let Some(lasted) = slow.join_next().await {
        // 10 s for a greeting, and what a loaded machine adds.
        anyhow::ensure!(lasted? < Duration::from_secs(30), "a slow stream is not ended");
        count += 1;
    }
    Ok(count)
}

/// Streams opened and dropped.
async fn opens(stranger: Stranger) -> anyhow::Result<usize> {
    let count = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (stranger, count) = (stranger.clone(), count.clone());
        workers.spawn(async move {
            while count.fetch_add(1, Ordering::Relaxed) < OPENS {
                stranger.open().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(OPENS)
}

/// Connections that do not even speak libp2p: silent ones, and ones that say something else.
async fn raw_connections(stranger: Stranger) -> anyhow::Result<usize> {
    let (mut silent, mut count) = (Vec::new(), 0);
    while stranger.goes_on() {
        let mut connection = tokio::net::TcpStream::connect(stranger.socket).await?;
        if silent.len() < 200 && count % 2 == 0 {
            silent.push(connection);
        } else {
            let _ = connection.write_all(&[0xa5; 2000]).await;
        }
        count += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_run_does_not_notice_any_of_them_and_no_server_dies() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let directory = tempfile::tempdir()?;
    let run = |name: &str| {
        let tune = swarm.tune("train")?.args(&["--mode", "deep_ptune", "--prefix-len", "5", "--task", "causal-lm"]);
        let tune = tune.args(&["--no-shuffle", "--max-length", "64", "--steps", "120", "--batch-size", "32"]);
        let tune = tune.args(&["--accumulation", "4", "--micro-batch-tokens", "400", "--in-flight", "3"]);
        let tune = tune.path("--data", &Goldens::data("train-causal.jsonl"));
        let tune = tune.path("--init-from", &goldens.path("init-replace"));
        anyhow::Ok(tune.path("--out", &directory.path().join(name)))
    };
    let alone = run("alone")?.losses()?;
    let held = |server: &petals_e2e::Node| anyhow::Ok((server.resident_bytes()?, server.descriptors()?));
    let before = swarm.servers.iter().map(held).collect::<anyhow::Result<Vec<_>>>()?;

    let model: ModelId = swarm.servers[0].ready["model"].as_str().context("no model")?.parse()?;
    let over = Arc::new(AtomicBool::new(false));
    let mut strangers = tokio::task::JoinSet::new();
    for server in 0..2 {
        let stranger = async || Stranger::new(&swarm, server, &model, &over).await;
        let (one, two, three, four) = (stranger().await?, stranger().await?, stranger().await?, stranger().await?);
        strangers.spawn(async move { ("broken frames", broken_frames(one).await) });
        strangers.spawn(async move { ("wrong requests", wrong_requests(two).await) });
        strangers.spawn(async move { ("slow streams", slow_streams(three).await) });
        strangers.spawn(async move { ("raw connections", raw_connections(four).await) });
    }
    let opener = Stranger::new(&swarm, 0, &model, &over).await?;
    let opened = tokio::spawn(opens(opener));
    let beside = run("beside")?;
    let beside = tokio::task::spawn_blocking(move || beside.losses()).await??;
    assert_curves_close("beside strangers", &beside, &alone, 1e-5);
    assert_eq!(opened.await??, OPENS);
    over.store(true, Ordering::Relaxed);
    while let Some(stranger) = strangers.join_next().await {
        let (what, count) = stranger?;
        let count = count.context(what)?;
        eprintln!("strangers: {what}: {count}");
        assert!(count > 10, "{what}: {count}");
    }

    for (number, (server, (bytes, descriptors))) in swarm.servers.iter().zip(before).enumerate() {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (bytes_now, descriptors_now) = held(server).context("a server died")?;
            if descriptors_now <= descriptors + 10 && bytes_now <= bytes + MEMORY {
                eprintln!(
                    "strangers: server {number}: {} -> {} MiB, {descriptors} -> {descriptors_now} descriptors",
                    bytes >> 20,
                    bytes_now >> 20
                );
                break;
            }
            let holds = format!("{} -> {} MiB, {descriptors} -> {descriptors_now}", bytes >> 20, bytes_now >> 20);
            assert!(Instant::now() < deadline, "server {number} keeps what strangers left: {holds}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
