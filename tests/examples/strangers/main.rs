//! Somebody honest beside attackers, attack by attack.
//!
//! usage: cargo run --release --example strangers -- [ROUNDS] [ATTACK...]
//!
//! Two chains of two servers of a tiny model each, a client and attackers, every one a host of its own in network namespaces. In each round the client trains
//! and generates on the chain that nobody attacks, then on the one that is attacked. Attackers run at the lowest priority: they are on the same machine,
//! and what they compute themselves is not the servers' affair. Heads and bodies are for `petals-tune serve` on each of the chains, and another program
//! (`curl`) asks it for texts. Prints medians of the rounds' times and ratios, and what the servers hold. `petals-node` and
//! `petals-tune` must have been built.

mod chains;
mod figures;
mod web;

use std::time::Duration;

use anyhow::Context;
use petals_e2e::{Access, Assailants, Assault, Goldens, Host, Internet, assail};

use chains::{Chain, Taken};
use figures::{Figures, HEAD};
use web::Web;

/// Hosts: two for each chain, the client, and the others attackers.
const CHAINS: [[usize; 2]; 2] = [[0, 1], [2, 3]];
const CLIENT: usize = 4;
const ATTACKERS: std::ops::Range<usize> = 5..11;
/// Ids of each host.
const IDS: usize = 4;
/// Hosts that attack; as many as there are where it is about names.
const AT_ONCE: usize = 3;
/// What attackers have before anything is measured.
const ESTABLISHED: Duration = Duration::from_secs(6);
const ROUNDS: usize = 3;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    if runtime.block_on(assail())? {
        return Ok(());
    }
    drop(runtime);
    let mut arguments = std::env::args().skip(1).peekable();
    let rounds = match arguments.next_if(|first| first.parse::<usize>().is_ok()) {
        Some(rounds) => rounds.parse()?,
        None => ROUNDS,
    };
    let mut wanted = arguments.map(|name| named(&name)).collect::<anyhow::Result<Vec<_>>>()?;
    if wanted.is_empty() {
        wanted = Assault::ALL.to_vec();
    }
    anyhow::ensure!(rounds > 0, "at least one round is needed");
    let Some(internet) = Internet::new(&[Access::Public; ATTACKERS.end])? else { return Ok(()) };
    println!("{rounds} rounds, {IDS} ids at each of the attackers' addresses\n\n{HEAD}");
    for assault in wanted {
        println!("{}", measured(&internet, assault, rounds).with_context(|| format!("{assault:?}"))?);
    }
    Ok(())
}

fn named(name: &str) -> anyhow::Result<Assault> {
    let names = || Assault::ALL.map(|assault| format!("{assault:?}").to_lowercase());
    let place = names().iter().position(|known| *known == name.to_lowercase());
    place
        .map(|place| Assault::ALL[place])
        .with_context(|| format!("no attack {name}: there are {}", names().join(", ")))
}

fn measured(internet: &Internet, assault: Assault, rounds: usize) -> anyhow::Result<Figures> {
    let goldens = Goldens::load("llama-gqa")?;
    let chain = |hosts: [usize; 2]| Chain::start(hosts.map(|host| internet.host(host)), &goldens);
    let (calm, attacked) = (chain(CHAINS[0])?, chain(CHAINS[1])?);
    let client = internet.host(CLIENT);
    let (calm_client, client) = (calm.bystander(client, &goldens)?, attacked.bystander(client, &goldens)?);
    let number = if assault == Assault::Directory { ATTACKERS.len() } else { AT_ONCE };
    let hosts: Vec<&Host> = ATTACKERS.take(number).map(|host| internet.host(host)).collect();
    let ids = if assault == Assault::Directory { 1 } else { IDS };
    // The first runs warm everything up, and say what is right.
    let web = if matches!(assault, Assault::Heads | Assault::Bodies) {
        let start = |chain: &Chain, host| Web::start(internet.host(host), chain, &goldens);
        Some((start(&calm, CHAINS[0][0])?, start(&attacked, CHAINS[1][0])?))
    } else {
        None
    };
    let take = |on_calm: bool| match &web {
        Some((calm, attacked)) => if on_calm { calm } else { attacked }.asked_by(internet.host(CLIENT)),
        None => Taken::of(if on_calm { &calm_client } else { &client }),
    };
    let (targets, holds) = match &web {
        Some((_, web)) => (vec![web.target(&attacked)?], Box::new(|| web.holds()) as Box<dyn Fn() -> _>),
        None => (attacked.targets()?, Box::new(|| attacked.holds()) as Box<dyn Fn() -> _>),
    };
    let expected = take(true)?;
    take(false)?.is_as(&expected)?;
    let mut figures = Figures::new(assault, holds()?);
    for _ in 0..rounds {
        let quiet = take(true)?;
        quiet.is_as(&expected)?;
        let mut attackers = Assailants::start(&hosts, &targets, &vec![assault; ids], &[])?;
        std::thread::sleep(ESTABLISHED);
        let busy = attacked.processor_time()?;
        let beside = take(false)?;
        eprintln!(
            "{assault:?}: {:.2?} and {:.2?} in calm, {:.2?} and {:.2?} beside {} times",
            quiet.training,
            quiet.text,
            beside.training,
            beside.text,
            attackers.done()
        );
        beside.is_as(&expected)?;
        anyhow::ensure!(attackers.are_there()?, "an attacker gave up");
        let busy = attacked.processor_time()? - busy;
        figures.add(&quiet, &beside, attackers.done(), busy, holds()?);
    }
    std::thread::sleep(ESTABLISHED);
    figures.afterwards(holds()?);
    Ok(figures)
}
