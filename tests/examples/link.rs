//! Slow links by hand: relays in front of nodes on this machine, which share one client's link.
//!
//! usage: cargo run --release -p petals-e2e --example link -- [--round-trip MS] [--mbit N] LISTEN=TARGET...
//!
//! For example, with a node at 4001 that others shall find at 5001, behind a link of 100 ms and 20 Mbit/s:
//!
//!     link --round-trip 100 --mbit 20 127.0.0.1:5001=127.0.0.1:4001 &
//!     petals-node serve --model DIR --listen /ip4/127.0.0.1/tcp/4001 --announce /ip4/127.0.0.1/tcp/5001
//!
//! Every node behind a relay and the client have an access link each (`petals_e2e::Link` describes the topology).
//! Prints the bytes of each link every five seconds until it is stopped.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use petals_e2e::{Link, LinkConfig, Net, Relay};

fn main() -> anyhow::Result<()> {
    let (mut round_trip, mut mbit, mut pairs) = (100.0, 100.0, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || -> anyhow::Result<f64> {
            let text = arguments.next().with_context(|| format!("{argument} lacks its value"))?;
            text.parse().ok().filter(|n: &f64| *n > 0.0 && *n < 1e6).with_context(|| format!("{argument} {text}"))
        };
        match argument.as_str() {
            "--round-trip" => round_trip = value()?,
            "--mbit" => mbit = value()?,
            pair => {
                let (listen, target) = pair.split_once('=').with_context(|| format!("{pair} is not LISTEN=TARGET"))?;
                let socket = |text: &str| text.parse::<SocketAddr>().with_context(|| format!("{text} is not IP:PORT"));
                pairs.push((socket(listen)?, socket(target)?));
            }
        }
    }
    if pairs.is_empty() {
        bail!("usage: link [--round-trip MS] [--mbit N] LISTEN=TARGET...");
    }
    let access = LinkConfig::between_hosts(Duration::from_secs_f64(round_trip / 1e3), mbit * 1e6);
    let client = Link::new(access);
    let net = Net::new(Some(client.clone()))?;
    let relay = |(listen, target)| {
        let relay = net.relay_at(listen, Link::new(access)).with_context(|| format!("cannot listen on {listen}"))?;
        relay.lead_to(target);
        println!("{} leads to {target}", relay.address());
        anyhow::Ok(relay)
    };
    let relays: Vec<Relay> = pairs.into_iter().map(relay).collect::<anyhow::Result<_>>()?;
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let line = |name: String, link: &Link| format!("{name}: {} up, {} down", link.up.bytes(), link.down.bytes());
        let all = relays.iter().map(|relay| line(relay.address().to_string(), relay.link()));
        let all: Vec<String> = [line("client".into(), &client)].into_iter().chain(all).collect();
        let now = client.up.bytes() + relays.iter().map(|relay| relay.link().up.bytes()).sum::<u64>();
        if now != before {
            before = now;
            println!("bytes: {}", all.join("; "));
        }
    }
}
