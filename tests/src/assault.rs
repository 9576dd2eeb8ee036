//! Attacks by many ids from hosts with addresses of their own, each host a process that goes on until it is ended.
//!
//! A program that starts [`Assailants`] calls [`assail`] when it is started as one of them: a test program in a test, others in `main`.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use petals_swarm::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::hostile::{HostileServer, Misbehaviour};
use crate::internet::Host;
use crate::load::Target;

mod directory;
mod http;
mod requests;

/// Says to a process what it is to do: [`Orders`] in JSON.
const ORDERS: &str = "PETALS_E2E_ASSAULT";
/// In front of a number in what such a process prints: how much it has done so far.
const DONE: &str = "assault: ";
/// An attack goes on for so long at most, should nobody end it.
const LONGEST: Duration = Duration::from_secs(900);
/// What attackers compute is not what is measured: on the same machine they take what others leave.
const NICENESS: &str = "19";
/// Liars about time of one id, and what they keep for themselves of each answer: less than would give them away.
const LIARS: usize = 1;
const LATE: Duration = Duration::from_millis(900);

/// One way to take something from everybody. Each is what one id does, on as many streams as it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Assault {
    /// The length of the largest request, and a byte of it each second.
    Claims,
    /// Forwards whose rows are to come from another server, which never come.
    Waits,
    /// Streams on which nothing is asked.
    Streams,
    /// As many sessions as there are, kept by a step now and then.
    Sessions,
    /// Rows to be passed on to a server that nobody asks for them, and rows for requests that nobody made.
    HandOvers,
    /// Passes over all blocks, of as many rows as a request may have, one behind the other on each stream.
    Passes,
    /// Sessions whose next step comes as soon as the last one is answered, so that there are some in every batch.
    Mates,
    /// Servers that compute rightly, late, and say that it took no time.
    Liars,
    /// Names of many ids under the keys of the model's blocks and of others, with records that name a closed port.
    Directory,
    /// Connections to an HTTP server, `ADDRESS:PORT` in place of a node's address, with heads that never end.
    Heads,
    /// The same with bodies of which a byte comes a second.
    Bodies,
}

impl Assault {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Claims,
        Self::Waits,
        Self::Streams,
        Self::Sessions,
        Self::HandOvers,
        Self::Passes,
        Self::Mates,
        Self::Liars,
        Self::Directory,
        Self::Heads,
        Self::Bodies,
    ];
}

/// What one process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Orders {
    /// Address of the host.
    own: String,
    targets: Vec<Target>,
    /// Of one id each.
    assaults: Vec<Assault>,
}

/// Processes that attack, ended when dropped.
#[derive(Debug)]
pub struct Assailants(Vec<(Child, Arc<AtomicU64>)>);

impl Assailants {
    /// Starts this program on each of the hosts, with `arguments` that make it call [`assail`]. Each has an id for each of `assaults`. Of several
    /// targets the first ones are what servers of a chain are, in its order.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn start(
        hosts: &[&Host],
        targets: &[Target],
        assaults: &[Assault],
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let start = |host: &&Host| {
            let own = host.address().to_string();
            let orders = Orders { own, targets: targets.to_vec(), assaults: assaults.to_vec() };
            let mut command = host.command("nice".as_ref());
            command.args(["-n", NICENESS]).arg(&this).args(arguments);
            command.env(ORDERS, serde_json::to_string(&orders)?);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
            let (told, done) = (child.stdout.take().context("no stdout")?, Arc::new(AtomicU64::new(0)));
            let count = done.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(told).lines().map_while(Result::ok) {
                    if let Some(number) = line.strip_prefix(DONE).and_then(|number| number.parse().ok()) {
                        count.store(number, Ordering::Relaxed);
                    }
                }
            });
            Ok((child, done))
        };
        hosts.iter().map(start).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Whether all of them are still at it.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn are_there(&mut self) -> anyhow::Result<bool> {
        for (child, _) in &mut self.0 {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What all of them got so far: streams, answers, passes or names, as the attack is.
    pub fn done(&self) -> u64 {
        self.0.iter().map(|(_, done)| done.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Assailants {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the processes of [`Assailants`] do; `false` in every other one.
///
/// # Errors
/// If the orders make no sense, or an attack cannot begin.
pub async fn assail() -> anyhow::Result<bool> {
    let Ok(orders) = std::env::var(ORDERS) else { return Ok(false) };
    let orders: Orders = serde_json::from_str(&orders)?;
    let done = Arc::new(AtomicU64::new(0));
    let mut ids = JoinSet::new();
    for (number, &assault) in orders.assaults.iter().enumerate() {
        ids.spawn(one(number, assault, orders.clone(), done.clone()));
    }
    let tell = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Fails, and ends everything, when nobody listens any more.
            writeln!(std::io::stdout(), "{DONE}{}", done.load(Ordering::Relaxed))?;
        }
    };
    let attack = async {
        while let Some(ended) = ids.join_next().await {
            ended??;
        }
        anyhow::bail!("all attackers have ended")
    };
    let both = async {
        tokio::select! {
            told = tell => told,
            ended = attack => ended,
        }
    };
    tokio::time::timeout(LONGEST, both).await.unwrap_or(Ok(()))?;
    Ok(true)
}

async fn one(number: usize, assault: Assault, orders: Orders, done: Arc<AtomicU64>) -> anyhow::Result<()> {
    match assault {
        Assault::Directory => directory::fill(number, &orders, &done).await,
        Assault::Heads | Assault::Bodies => http::hold(assault, &orders, &done).await,
        Assault::Liars => lie(number, &orders, &done).await,
        _ => requests::ask_for_all(number, assault, &orders, &done).await,
    }
}

/// Servers that are in the swarm like others, and hold each answer back.
async fn lie(number: usize, orders: &Orders, done: &AtomicU64) -> anyhow::Result<()> {
    let target = &orders.targets[number % orders.targets.len()];
    let member: Multiaddr = target.address.parse()?;
    let listen: Multiaddr = format!("/ip4/{}/tcp/0", orders.own).parse()?;
    let mut liars = Vec::new();
    for _ in 0..LIARS {
        let lies = Misbehaviour::SlowForFree(LATE);
        liars.push(HostileServer::start_at(&listen, &member, &target.model, target.span, lies).await?);
    }
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let lied = liars.iter().map(HostileServer::misdeeds).sum();
        done.fetch_add((lied - before) as u64, Ordering::Relaxed);
        before = lied;
    }
}

/// Id and addresses of a target.
fn whereabouts(target: &Target) -> anyhow::Result<(PeerId, Vec<Multiaddr>)> {
    let address: Multiaddr = target.address.parse()?;
    let (_, peer) = target.address.rsplit_once("/p2p/").context("an address without a peer id")?;
    Ok((peer.parse()?, vec![address]))
}
