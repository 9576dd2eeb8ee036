//! Attackers on hosts of their own, with addresses of their own, beside somebody honest.

use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{
    Access, Assailants, Assault, Bystander, Goldens, Host, Internet, Node, Target, assail, assert_curves_close,
};

/// What makes this program do what attackers do.
pub(crate) const AS_ATTACKER: [&str; 3] = ["--exact", "strangers::attack_from_this_host", "--nocapture"];
/// Steps of a run beside them.
const STEPS: usize = 200;
/// Width of the tiny model.
const HIDDEN: usize = 32;
/// Tokens of a text beside them.
const TOKENS: usize = 100;
/// Steps of a run beside passes that the tiny model takes a hundred times as long for as for an honest one, and what each of its steps, of some sixteen
/// passes one behind the other, may take.
const FEW_STEPS: usize = 30;
const LONGEST_STEP: Duration = Duration::from_secs(2);

pub(crate) fn serve(host: &Host, goldens: &Goldens, more: &[&str]) -> anyhow::Result<Node> {
    let model = goldens.model();
    let model = model.to_str().context("a path that is not UTF-8")?;
    let serve = ["serve", "--model", model, "--device", "cpu", "--no-mdns", "--no-upnp", "--blocks", "0..4"];
    Node::start_on(host, &[&serve[..], more].concat())
}

/// What attackers are after.
pub(crate) fn target(server: &Node) -> anyhow::Result<Target> {
    let model = server.ready["model"].as_str().context("no model")?.parse()?;
    Ok(Target { address: server.address.clone(), model, span: "0..4".parse()?, hidden: HIDDEN })
}

#[test]
fn attackers_at_several_addresses_change_nothing_for_somebody_honest() -> anyhow::Result<()> {
    // Each of those ids on each of the hosts.
    let (took, calm) = beside(&[Assault::Claims, Assault::Waits, Assault::Sessions, Assault::Streams], STEPS, &[])?;
    assert!(took < 10 * calm + Duration::from_secs(10), "it hardly comes to its turn");
    Ok(())
}

#[test]
fn long_passes_and_batch_mates_of_many_change_nothing_for_somebody_honest() -> anyhow::Result<()> {
    // So little that it is all taken before anything is measured.
    let memory = ["--request-bytes", "64M", "--kv-bytes", "32M"];
    let (took, calm) = beside(&[Assault::Passes, Assault::Mates, Assault::Passes, Assault::Mates], FEW_STEPS, &memory)?;
    // A pass waits for one of the largest, not for all that wait.
    assert!(took < calm + FEW_STEPS as u32 * LONGEST_STEP, "it hardly comes to its turn");
    Ok(())
}

/// Somebody trains and generates beside attackers at three addresses: losses and tokens are those of a calm run, memory and descriptors of the server
/// do not grow. Returns the longest time of three runs and that in calm; `scripts/bench-strangers` measures it, attack by attack.
fn beside(assaults: &[Assault], steps: usize, memory: &[&str]) -> anyhow::Result<(Duration, Duration)> {
    let Some(internet) = Internet::new(&[Access::Public; 5])? else { return Ok((Duration::ZERO, Duration::ZERO)) };
    let goldens = Goldens::load("llama-gqa")?;
    let mut server = serve(internet.host(0), &goldens, memory)?;
    server.ready = server.event("ready")?;
    let honest = Bystander::new(internet.host(1), &goldens, &server.address)?;
    // The first run warms everything up.
    honest.trains(steps)?;
    let (expected, calm) = honest.trains(steps)?;
    let (text, calm_text) = honest.generates(TOKENS)?;
    let without = server.descriptors()?;
    let hosts: Vec<&Host> = (2..5).map(|number| internet.host(number)).collect();
    let targets = [target(&server)?];
    let start = |assault: &Assault| Assailants::start(&hosts, &targets, &[*assault], &AS_ATTACKER);
    let mut attackers = assaults.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(5));
    let (mut samples, mut longest) = (Vec::new(), Duration::ZERO);
    for _ in 0..3 {
        let (losses, took) = honest.trains(steps)?;
        let (tokens, took_text) = honest.generates(TOKENS)?;
        let ratio = |took: Duration, calm: Duration| took.as_secs_f64() / calm.as_secs_f64();
        eprintln!(
            "strangers: beside {assaults:?} at 3 addresses, who got what they wanted {:?} times so far: training takes \
             {took:.2?}, {:.2} times as long, {TOKENS} tokens {took_text:.2?}, {:.2} times",
            attackers.iter().map(Assailants::done).collect::<Vec<_>>(),
            ratio(took, calm),
            ratio(took_text, calm_text)
        );
        assert_curves_close("beside attackers", &losses, &expected, 1e-5);
        assert_eq!(tokens, text, "beside attackers");
        longest = longest.max(took);
        for attackers in &mut attackers {
            assert!(attackers.are_there()? && attackers.done() > 0, "an attacker gave up");
        }
        samples.push((server.resident_bytes()?, server.descriptors()?));
    }
    let [(before, _), .., (after, descriptors)] = samples.as_slice() else { anyhow::bail!("no samples") };
    let mib = [before >> 20, after >> 20];
    eprintln!("strangers: {mib:?} MiB after the first and the last run, {descriptors} descriptors at the end");
    assert!(*after <= before + before / 10 + (16 << 20), "the memory of the server grows: {mib:?} MiB");
    let ids = hosts.len() * assaults.len();
    assert!(*descriptors >= without + ids, "not all attackers are connected: {without}, {descriptors}");
    assert!(samples[2].1 <= samples[0].1 + 16, "the descriptors of the server grow: {samples:?}");
    Ok((longest, calm))
}

/// What [`Assailants`] run on their hosts; nothing by itself.
#[tokio::test(flavor = "multi_thread")]
async fn attack_from_this_host() -> anyhow::Result<()> {
    assail().await.map(drop)
}

/// Hosts of the scenario in which records name somebody who is no node.
const BOOTSTRAP: usize = 0;
const VICTIM: usize = 3;
const LIARS: std::ops::Range<usize> = 4..10;
/// Addresses in a record.
const NAMED: u16 = 16;

/// New connections that came to the victim from honest hosts.
fn knocks(victim: &Host) -> anyhow::Result<u64> {
    let listed = victim.command("nft".as_ref()).args(["list", "counters"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let packets = listed.split("packets ").nth(1).context("no counter")?;
    Ok(packets.split_whitespace().next().context("no number")?.parse()?)
}

#[test]
fn records_do_not_lead_everybody_to_somebody_who_is_no_node() -> anyhow::Result<()> {
    let Some(internet) = Internet::new(&[Access::Public; LIARS.end])? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let victim = internet.host(VICTIM);
    let honest = [BOOTSTRAP, 1, 2].map(|number| internet.host(number).address().to_string()).join(", ");
    let rules = format!(
        "add table inet count
         add counter inet count knocks
         add chain inet count input {{ type filter hook input priority 0; }}
         add rule inet count input ip saddr {{ {honest} }} tcp flags & (syn | ack) == syn counter name knocks\n"
    );
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules");
    std::fs::write(&file, rules)?;
    let set = victim.command("nft".as_ref()).arg("-f").arg(&file).output()?;
    anyhow::ensure!(set.status.success(), "{set:?}");

    let bootstrap = Node::start_on(internet.host(BOOTSTRAP), &["bootstrap", "--no-mdns", "--no-upnp"])?;
    let peers = ["--peers", &bootstrap.address];
    let started = Instant::now();
    let server = serve(internet.host(1), &goldens, &peers)?;
    let mut liars = Vec::new();
    for number in LIARS {
        let first = 1000 * number as u16;
        let named = (first..first + NAMED).map(|port| format!("/ip4/{}/tcp/{port}", victim.address()));
        let named: Vec<String> = named.flat_map(|address| ["--announce".to_owned(), address]).collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        liars.push(serve(internet.host(number), &goldens, &[&peers[..], &named].concat())?);
    }
    liars.iter().chain([&server]).try_for_each(|node| node.event("ready").map(drop))?;
    // The client reaches the honest server, whoever else it tries.
    let (losses, _) = Bystander::new(internet.host(2), &goldens, &bootstrap.address)?.trains(STEPS)?;
    assert_eq!(losses.len(), STEPS);
    let count = knocks(victim)?;
    let seconds = started.elapsed().as_secs();
    eprintln!("strangers: {} addresses of the victim in records: {count} connections in {seconds} s", LIARS.len() * 16);
    // Three honest nodes, each with what it may try at once and one attempt in ten seconds.
    assert!(count <= 3 * (16 + seconds / 10 + 1), "{count} connections in {seconds} s");
    Ok(())
}
