//! What the directory costs: starts swarms of several sizes in this process, and prints how soon a new server is found and a dead one
//! forgotten, how many requests of the hash table a node gets in a minute when nothing else happens, and how many nodes it is
//! connected to.
//!
//! Usage: `cargo run --release --example directory [NODES...] [--blocks N] [--seconds N] [--rounds N]`

use std::time::{Duration, Instant};

use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryTraffic, Identity, Multiaddr, SwarmConfig, SwarmHandle, SwarmNode};

/// Life of the records of the servers that come and go. The others have the usual one.
const PERIOD: Duration = Duration::from_secs(5);
/// Blocks of the model. Block 0 is for the servers that come and go.
const MODEL_BLOCKS: u32 = 64;
/// A swarm has settled when every node has spoken, so that a node got so many requests for each block, and then gets fewer than
/// `CALM` in `WINDOW`, twice in a row.
const SPOKEN: f64 = 24.0;
const CALM: f64 = 10.0;
const WINDOW: Duration = Duration::from_secs(4);
/// Longest wait for that.
const SETTLE: Duration = Duration::from_secs(300);

type Error = Box<dyn std::error::Error>;

#[derive(Clone, Copy)]
struct Options {
    blocks: u32,
    window: Duration,
    rounds: u32,
}

fn config(peers: &[Multiaddr]) -> Result<SwarmConfig, Error> {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    Ok(SwarmConfig { listen, peers: peers.to_vec(), ..SwarmConfig::server() })
}

async fn until(client: &SwarmHandle, model: &ModelId, there: bool) -> Result<Duration, Error> {
    let start = Instant::now();
    loop {
        if client.lookup(model, Span::new(0, 1)?).await.is_ok_and(|found| found.is_empty() != there) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > Duration::from_secs(60) {
            return Err("not within a minute".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A server starts, is found, dies and is forgotten.
async fn come_and_go(at: &[Multiaddr], client: &SwarmHandle, model: &ModelId) -> Result<(Duration, Duration), Error> {
    let config = SwarmConfig { announce_period: PERIOD, ..config(at)? };
    let start = Instant::now();
    let (server, _streams) = SwarmNode::start(Identity::generate(), config).await?;
    server.announce(ServerInfo::new(model.clone(), Span::new(0, 1)?, ServerState::Online)).await?;
    until(client, model, true).await?;
    let found = start.elapsed();
    server.shutdown().await;
    Ok((found, until(client, model, false).await?))
}

fn median_and_worst(mut times: Vec<Duration>) -> String {
    times.sort();
    match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(worst)) => format!("{:7.1} {:7.1}", median.as_secs_f64(), worst.as_secs_f64()),
        _ => format!("{:>7} {:>7}", "-", "-"),
    }
}

async fn measure(count: u32, options: Options) -> Result<(), Error> {
    let model: ModelId = "demo@0000000000000001".parse()?;
    let (first, _streams) = SwarmNode::start(Identity::generate(), config(&[])?).await?;
    let at = first.listen_addresses();
    let mut nodes = Vec::new();
    for number in 1..count {
        let node = SwarmNode::start(Identity::generate(), config(&at)?).await?;
        let start = 1 + (number * options.blocks) % MODEL_BLOCKS;
        let info = ServerInfo::new(model.clone(), Span::new(start, start + options.blocks)?, ServerState::Online);
        node.0.announce(info).await?;
        nodes.push(node);
    }
    let counts = || nodes.iter().map(|(node, _)| node.directory_traffic()).collect::<Vec<_>>();
    let per_node = |counts: &[DirectoryTraffic], of: fn(&DirectoryTraffic) -> u64| {
        counts.iter().map(of).sum::<u64>() as f64 / nodes.len() as f64
    };
    let client = SwarmConfig { peers: at.clone(), ..SwarmConfig::client() };
    let (client, _) = SwarmNode::start(Identity::generate(), client).await?;
    client.wait_connected(Duration::from_secs(30)).await?;
    let settling = Instant::now();
    let (mut calm, mut starting) = (0, 0.0);
    while calm < 2 && settling.elapsed() < SETTLE {
        tokio::time::sleep(WINDOW).await;
        let now = per_node(&counts(), DirectoryTraffic::total);
        let is_calm = now - starting < CALM && now > SPOKEN * f64::from(options.blocks);
        calm = if is_calm { calm + 1 } else { 0 };
        starting = now;
    }
    let settled = settling.elapsed().as_secs_f64();

    eprintln!("{count} nodes have settled");
    let (mut found, mut forgotten) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (came, went) = come_and_go(&at, &client, &model).await?;
        found.push(came);
        forgotten.push(went);
    }
    let before = counts();
    tokio::time::sleep(options.window).await;
    let after = counts();
    let per_minute = |of: fn(&DirectoryTraffic) -> u64| {
        (per_node(&after, of) - per_node(&before, of)) * 60.0 / options.window.as_secs_f64()
    };
    let peers = nodes.iter().map(|(node, _)| node.connected_peers().len()).sum::<usize>() / nodes.len();
    println!(
        "{count:5} {:6} | {} | {} | {starting:8.0} {settled:5.0} | {:6.0} {:9.0} {:6.0} {:6.0} {:9.0} {:6.0} | {peers:5}",
        options.blocks,
        median_and_worst(found),
        median_and_worst(forgotten),
        per_minute(DirectoryTraffic::total),
        per_minute(|traffic| traffic.find_node),
        per_minute(|traffic| traffic.add_provider),
        per_minute(|traffic| traffic.put_record),
        per_minute(|traffic| traffic.get_providers),
        per_minute(|traffic| traffic.get_record),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut sizes = Vec::new();
    let mut options = Options { blocks: 8, window: Duration::from_secs(160), rounds: 5 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u32, Error> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
        match argument.as_str() {
            "--blocks" => options.blocks = number()?.clamp(1, MODEL_BLOCKS),
            "--seconds" => options.window = Duration::from_secs(number()?.max(1).into()),
            "--rounds" => options.rounds = number()?,
            size => sizes.push(size.parse::<u32>()?.max(2)),
        }
    }
    if sizes.is_empty() {
        sizes = vec![25, 50, 100, 200];
    }
    println!(
        "             |        found, s |    forgotten, s |       at start |               requests a node gets in a minute |      "
    );
    println!(
        "nodes blocks |  median   worst |  median   worst | requests     s |    all find_node +block +recrd get block  recrd | peers"
    );
    for size in sizes {
        measure(size, options).await?;
    }
    Ok(())
}
