//! What the directory costs: starts swarms of several sizes in this process, and prints how many requests of the hash table a node gets
//! in a minute, how soon a new server is found, and how soon a dead one is forgotten.
//!
//! Usage: `cargo run --release --example directory [NODES...] [--blocks N] [--seconds N]`

use std::time::{Duration, Instant};

use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{Identity, Multiaddr, SwarmConfig, SwarmHandle, SwarmNode};

/// Life of the records of the server that dies.
const PERIOD: Duration = Duration::from_secs(5);

type Error = Box<dyn std::error::Error>;

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

async fn measure(count: u32, blocks: u32, window: Duration) -> Result<(), Error> {
    let model: ModelId = "demo@0000000000000001".parse()?;
    let (first, _streams) = SwarmNode::start(Identity::generate(), config(&[])?).await?;
    let at = first.listen_addresses();
    let mut nodes = Vec::new();
    for number in 1..count {
        let node = SwarmNode::start(Identity::generate(), config(&at)?).await?;
        // Block 0 stays free.
        let start = 1 + (number * blocks) % 64;
        let info = ServerInfo::new(model.clone(), Span::new(start, start + blocks)?, ServerState::Online);
        node.0.announce(info).await?;
        nodes.push(node);
    }
    let client = SwarmConfig { peers: at.clone(), ..SwarmConfig::client() };
    let (client, _) = SwarmNode::start(Identity::generate(), client).await?;
    client.wait_connected(Duration::from_secs(30)).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;

    let (server, streams) =
        SwarmNode::start(Identity::generate(), SwarmConfig { announce_period: PERIOD, ..config(&at)? }).await?;
    server.announce(ServerInfo::new(model.clone(), Span::new(0, 1)?, ServerState::Online)).await?;
    let found = until(&client, &model, true).await?;
    drop(streams);
    server.shutdown().await;
    let forgotten = until(&client, &model, false).await?;

    let counts = || nodes.iter().map(|(node, _)| node.directory_traffic()).collect::<Vec<_>>();
    let before = counts();
    tokio::time::sleep(window).await;
    let after = counts();
    let per_minute = |of: fn(&petals_swarm::DirectoryTraffic) -> u64| {
        let sum = |all: &[_]| all.iter().map(of).sum::<u64>() as f64;
        (sum(&after) - sum(&before)) / f64::from(count - 1) * 60.0 / window.as_secs_f64()
    };
    println!(
        "{count:6} {blocks:6} {:9.0} {:9.0} {:9.0} {:9.0} {:11.1} {:11.1}",
        per_minute(petals_swarm::DirectoryTraffic::total),
        per_minute(|traffic| traffic.find_node),
        per_minute(|traffic| traffic.add_provider),
        per_minute(|traffic| traffic.put_record),
        found.as_secs_f64(),
        forgotten.as_secs_f64(),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (mut sizes, mut blocks, mut seconds) = (Vec::new(), 8, 150);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u32, Error> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
        match argument.as_str() {
            "--blocks" => blocks = number()?,
            "--seconds" => seconds = number()?,
            size => sizes.push(size.parse()?),
        }
    }
    if sizes.is_empty() {
        sizes = vec![25, 50, 100, 200];
    }
    println!(
        "requests that a node gets in a minute; seconds until a new server was found, and a dead one forgotten ({PERIOD:?} periods)"
    );
    println!(" nodes blocks       all find_node  provider    record       found   forgotten");
    for size in sizes {
        measure(size, blocks, Duration::from_secs(seconds.into())).await?;
    }
    Ok(())
}
