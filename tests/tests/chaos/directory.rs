//! Ids of several addresses fill the directory; who comes new must be found all the same.

use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{Access, Assailants, Assault, Bystander, Goldens, Host, Internet, Node, assert_curves_close};

use crate::strangers::{AS_ATTACKER, serve, target};

/// Hosts of the scenario.
const BOOTSTRAP: usize = 0;
const FIRST: usize = 1;
const NEWCOMER: usize = 2;
const CLIENT: usize = 3;
const ATTACKERS: std::ops::Range<usize> = 4..10;
/// Names that all attackers together have written when the lists of the blocks are full: 288 ids begin with those, half of them with eight at a time.
const FULL: u64 = 144 * (4 + 8);
/// Longest time until then.
const PATIENCE: Duration = Duration::from_secs(90);
/// Steps of the run during which the first server dies, and when it does.
const STEPS: usize = 300;
const DIES_AT: u64 = 100;
/// A dead server's work is done by the newcomer within this.
const LONGEST_STEP: Duration = Duration::from_secs(20);

#[test]
fn a_newcomer_is_found_and_used_while_many_ids_fill_the_directory() -> anyhow::Result<()> {
    let Some(internet) = Internet::new(&[Access::Public; ATTACKERS.end])? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let bootstrap = Node::start_on(internet.host(BOOTSTRAP), &["bootstrap", "--no-mdns", "--no-upnp"])?;
    let peers = ["--peers", &bootstrap.address];
    let mut first = serve(internet.host(FIRST), &goldens, &peers)?;
    first.ready = first.event("ready")?;
    let honest = Bystander::new(internet.host(CLIENT), &goldens, &bootstrap.address)?;
    let (expected, calm) = honest.trains(STEPS)?;

    let hosts: Vec<&Host> = ATTACKERS.map(|number| internet.host(number)).collect();
    let targets = [&bootstrap.address, &first.address].map(|address| {
        let target = target(&first)?;
        Ok::<_, anyhow::Error>(petals_e2e::Target { address: address.clone(), ..target })
    });
    let targets = targets.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut attackers = Assailants::start(&hosts, &targets, &[Assault::Directory], &AS_ATTACKER)?;
    let started = Instant::now();
    while attackers.done() < FULL {
        assert!(started.elapsed() < PATIENCE, "{} names in {PATIENCE:?}", attackers.done());
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("directory: {} names after {:.1?}", attackers.done(), started.elapsed());

    let newcomer = serve(internet.host(NEWCOMER), &goldens, &peers)?;
    let ready = newcomer.event("ready")?;
    let peer = newcomer.address.rsplit('/').next().context("no peer id")?.to_owned();
    assert_eq!(ready["model"], first.ready["model"]);
    // The server in use dies, and whoever trains has nobody but the newcomer, among hundreds of others that the directory tells of.
    let (mut ends, mut killed) = (Vec::new(), false);
    let (losses, finished) = honest.training(STEPS)?.watch(|event| {
        ends.extend((event["event"] == "step").then(Instant::now));
        if event["step"].as_u64() == Some(DIES_AT) && !killed {
            killed = first.kill().is_ok();
        }
        true
    })?;
    assert!(finished && killed, "the run failed after {} steps", losses.len());
    assert_curves_close("beside names without end", &losses, &expected, 1e-5);
    let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let took = *ends.last().context("no steps")? - ends[0];
    eprintln!("directory: {took:.2?} with a server lost, {calm:.2?} in calm; longest step {longest:.2?}");
    assert!(longest < LONGEST_STEP, "a step took {longest:?}");

    // Whoever comes after that has to find it in the directory alone.
    let (losses, took) = honest.trains(STEPS)?;
    assert_curves_close("by the newcomer", &losses, &expected, 1e-5);
    eprintln!(
        "directory: {took:.2?} with the newcomer {peer} alone; {} names, bootstrap {} MiB, {} descriptors",
        attackers.done(),
        bootstrap.resident_bytes()? >> 20,
        bootstrap.descriptors()?
    );
    assert!(attackers.are_there()?, "an attacker gave up");
    Ok(())
}
