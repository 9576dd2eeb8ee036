//! What a hop costs: round trips and throughput between two nodes of one process over loopback.
//!
//!     cargo run --release -p petals-swarm --example hop_echo [tcp|quic]

use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use petals_swarm::{Identity, PeerStream, SwarmConfig, SwarmNode};

type Failure = Box<dyn std::error::Error>;

async fn serve(mut stream: PeerStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    let mut message = Vec::new();
    loop {
        stream.read_exact(&mut length).await?;
        message.resize(u32::from_le_bytes(length) as usize, 0);
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
        stream.flush().await?;
    }
}

async fn call(stream: &mut PeerStream, message: &[u8], reply: &mut [u8]) -> std::io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(&(message.len() as u32).to_le_bytes()).await?;
    stream.write_all(message).await?;
    stream.flush().await?;
    stream.read_exact(reply).await?;
    Ok(start.elapsed())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let quic = std::env::args().nth(1).as_deref() == Some("quic");
    let listen = if quic { "/ip4/127.0.0.1/udp/0/quic-v1" } else { "/ip4/127.0.0.1/tcp/0" };
    let config = SwarmConfig { listen: vec![listen.parse()?], ..SwarmConfig::server() };
    let (server, mut incoming) = SwarmNode::start(Identity::generate(), config).await?;
    tokio::spawn(async move {
        while let Some(accepted) = incoming.next().await {
            tokio::spawn(serve(accepted.stream));
        }
    });
    let (client, _) = SwarmNode::start(Identity::generate(), SwarmConfig::client()).await?;
    let (peer, addresses, wait) = (server.local_peer(), server.listen_addresses(), Duration::from_secs(10));

    let start = Instant::now();
    let mut stream = client.open_stream(peer, &addresses, wait).await?;
    println!("connect and open: {:?}", start.elapsed());
    for (length, rounds) in [(8 << 10, 1000), (64 << 10, 500), (4 << 20, 50)] {
        let (message, mut reply) = (vec![7; length], vec![0; length]);
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(call(&mut stream, &message, &mut reply).await?);
        }
        times.sort();
        let median = times[times.len() / 2];
        let rate = length as f64 / median.as_secs_f64() / 1e6;
        println!("{:5} KiB: median {median:?}, {rate:.0} MB/s each way", length >> 10);
    }
    let (message, mut reply) = (vec![7; 8 << 10], vec![0; 8 << 10]);
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        let mut fresh = client.open_stream(peer, &addresses, wait).await?;
        call(&mut fresh, &message, &mut reply).await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("new stream and 8 KiB: median {:?}", times[times.len() / 2]);
    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
