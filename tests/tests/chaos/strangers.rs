//! Attackers on hosts of their own, with addresses of their own, beside somebody honest.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{Access, AttackStream, Attacker, Goldens, Host, Internet, Node, Tune, assert_curves_close};
use petals_protocol::{
    ForwardRequest, Injection, ModelId, PassLayout, Request, Response, RowSource, RowTarget, SessionId, SessionOpen,
    Span, StepRequest, TableSource, Tensor, WireDtype,
};
use petals_swarm::{Multiaddr, PeerId};

/// Says to a process of this test program whom it attacks, and from where: address, model, own address.
const ATTACK: &str = "PETALS_E2E_ATTACK";
/// How long an attack goes on at most; it is ended when the honest run has ended.
const LONGEST: Duration = Duration::from_secs(240);
/// Ids of each host, and streams that each tries to hold.
const IDS: usize = 4;
const STREAMS: usize = 16;
/// Width of the tiny model.
const HIDDEN: usize = 32;
/// How long streams are held on which nothing is asked.
const HELD: Duration = Duration::from_secs(20);
const STEPS: &str = "200";

fn serve(host: &Host, goldens: &Goldens, more: &[&str]) -> anyhow::Result<Node> {
    let model = goldens.model();
    let model = model.to_str().context("a path that is not UTF-8")?;
    let serve = ["serve", "--model", model, "--device", "cpu", "--no-mdns", "--no-upnp", "--blocks", "0..4"];
    Node::start_on(host, &[&serve[..], more].concat())
}

fn training(host: &Host, goldens: &Goldens, peers: &str, out: &std::path::Path) -> anyhow::Result<Tune> {
    let tune = Tune::on(host, &["train", "--peers", peers])?.path("--model", &goldens.model());
    Ok(tune
        .args(&["--mode", "deep_ptune", "--injection", "replace", "--prefix-len", "5", "--task", "causal-lm"])
        .args(&["--steps", STEPS, "--batch-size", "32", "--accumulation", "4", "--lr", "0.003", "--no-shuffle"])
        .args(&["--max-length", "64", "--micro-batch-tokens", "400", "--in-flight", "3"])
        .path("--data", &Goldens::data("train-causal.jsonl"))
        .path("--init-from", &goldens.path("init-replace"))
        .path("--out", out))
}

/// Losses, and how long the steps took.
fn run(tune: Tune) -> anyhow::Result<(Vec<f64>, Duration)> {
    let mut ends = Vec::new();
    let (losses, finished) = tune.watch(|event| {
        ends.extend((event["event"] == "step").then(Instant::now));
        true
    })?;
    anyhow::ensure!(finished && ends.len() > 1, "the run failed");
    Ok((losses, ends[ends.len() - 1] - ends[0]))
}

/// Processes of this program that attack, ended when dropped.
struct Attackers(Vec<Child>);

impl Attackers {
    fn start(hosts: &[&Host], server: &Node) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let model = server.ready["model"].as_str().context("no model")?;
        let start = |host: &&Host| {
            let mut command = host.command(&this);
            command.args(["--exact", "strangers::attack_from_this_host", "--nocapture"]);
            command.env(ATTACK, format!("{} {model} {}", server.address, host.address()));
            Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
        };
        hosts.iter().map(start).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Whether all of them are still at it.
    fn are_there(&mut self) -> anyhow::Result<bool> {
        for child in &mut self.0 {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn attackers_at_several_addresses_change_nothing_for_somebody_honest() -> anyhow::Result<()> {
    let Some(internet) = Internet::new(&[Access::Public; 5])? else { return Ok(()) };
    let (goldens, directory) = (Goldens::load("llama-gqa")?, tempfile::tempdir()?);
    let mut server = serve(internet.host(0), &goldens, &[])?;
    server.ready = server.event("ready")?;
    let client = internet.host(1);
    let honest = |name: &str| training(client, &goldens, &server.address, &directory.path().join(name)).and_then(run);
    // The first run warms everything up.
    honest("first")?;
    let (expected, calm) = honest("calm")?;
    let without = server.descriptors()?;
    let hosts: Vec<&Host> = (2..5).map(|number| internet.host(number)).collect();
    let mut attackers = Attackers::start(&hosts, &server)?;
    std::thread::sleep(Duration::from_secs(5));
    let mut samples = Vec::new();
    let sample = || Ok::<_, anyhow::Error>((server.resident_bytes()?, server.descriptors()?));
    for round in 0..3 {
        let (losses, took) = honest(&format!("beside-{round}"))?;
        let ratio = took.as_secs_f64() / calm.as_secs_f64();
        eprintln!("strangers: {took:.2?} beside 12 ids at 3 addresses, {calm:.2?} in calm: {ratio:.2} times as long");
        assert_curves_close("beside attackers", &losses, &expected, 1e-5);
        assert!(took < 10 * calm + Duration::from_secs(10), "it hardly comes to its turn");
        assert!(attackers.are_there()?, "an attacker gave up");
        samples.push(sample()?);
    }
    let [(before, _), .., (after, descriptors)] = samples.as_slice() else { anyhow::bail!("no samples") };
    let mib = [before >> 20, after >> 20];
    eprintln!("strangers: {mib:?} MiB after the first and the last run, {descriptors} descriptors at the end");
    assert!(*after <= before + before / 10 + (16 << 20), "the memory of the server grows: {mib:?} MiB");
    assert!(*descriptors >= without + hosts.len() * IDS, "not all attackers are connected: {without}, {descriptors}");
    assert!(samples[2].1 <= samples[0].1 + 16, "the descriptors of the server grow: {samples:?}");
    Ok(())
}

/// What [`Attackers`] run on their hosts; nothing by itself.
#[tokio::test(flavor = "multi_thread")]
async fn attack_from_this_host() -> anyhow::Result<()> {
    let Ok(told) = std::env::var(ATTACK) else { return Ok(()) };
    let words: Vec<&str> = told.split(' ').collect();
    let [address, model, own] = words.as_slice() else { anyhow::bail!("{told:?} says nothing") };
    let address: Multiaddr = address.parse()?;
    let server: PeerId = address.to_string().rsplit('/').next().unwrap_or_default().parse()?;
    let model: ModelId = model.parse()?;
    let attack = async {
        let mut ids = Vec::new();
        for kind in 0..IDS {
            let attacker = Attacker::after(own, (server, vec![address.clone()]), &model).await?;
            ids.push(async move {
                loop {
                    // Whatever the server does about it, it begins again.
                    let _ = take_what_there_is(&attacker, kind).await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        futures::future::join_all(ids).await;
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(LONGEST, attack).await.unwrap_or(Ok(()))
}

/// All the streams that one id gets, and on each of them what takes most.
async fn take_what_there_is(attacker: &Attacker, kind: usize) -> anyhow::Result<()> {
    let mut streams = Vec::new();
    while streams.len() < STREAMS {
        match attacker.greeted().await {
            Ok(stream) => streams.push(stream),
            Err(_) => break,
        }
    }
    anyhow::ensure!(!streams.is_empty(), "no stream");
    let rounds = streams.iter_mut().map(|stream| async move {
        match kind {
            0 => claims(stream).await,
            1 => waits(stream).await,
            2 => sessions(stream).await,
            _ => {
                let _ = tokio::time::timeout(HELD, stream.ended()).await;
                Ok(())
            }
        }
    });
    futures::future::join_all(rounds).await.into_iter().collect()
}

/// The length of the largest request, and a byte of it each second.
async fn claims(stream: &mut AttackStream) -> anyhow::Result<()> {
    let rows = (stream.limits.max_body / (4 * HIDDEN as u64)).min(u64::from(stream.limits.max_rows)) as usize;
    stream.claim(&Request::Forward(forward(rows as u32)), values(rows), 400).await?;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stream.send_raw(&[0]).await?;
    }
    Ok(())
}

/// Forwards whose rows are to come from another server, which never come.
async fn waits(stream: &mut AttackStream) -> anyhow::Result<()> {
    for number in 0..32u8 {
        let input = RowSource::Relay(petals_protocol::RelayToken([number; 16]));
        let request = ForwardRequest { input, deadline_ms: 600_000, ..forward(stream.limits.max_rows) };
        stream.send(number.into(), &Request::Forward(request), &[]).await?;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

/// As many sessions as there are, for as long as can be: a step now and then keeps them.
async fn sessions(stream: &mut AttackStream) -> anyhow::Result<()> {
    let step = |session, start, open| {
        let (session, starts) = (SessionId(session), vec![start]);
        Request::Step(Box::new(StepRequest { session, forward: forward(1), starts, order: None, open }))
    };
    for session in 0..200 {
        let open = Some(SessionOpen { max_sequences: 1, max_positions: 4096 });
        if !matches!(stream.ask(&step(session, 0, open), &[values(1)]).await?, Response::Forward(_)) {
            break;
        }
    }
    for position in 1..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stream.ask(&step(0, position, None), &[values(1)]).await?;
    }
    Ok(())
}

fn forward(rows: u32) -> ForwardRequest {
    let layout = PassLayout {
        span: Span::new(0, 4).expect("not empty"),
        lengths: vec![rows],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let (input, output, tables) = (RowSource::Inline, RowTarget::Reply, TableSource::Inline);
    ForwardRequest { layout, tables, stash: None, input, output, reply_dtype: WireDtype::F32, deadline_ms: 10_000 }
}

fn values(rows: usize) -> Tensor {
    Tensor::from_f32(WireDtype::F32, &[rows, HIDDEN], &vec![0.1; rows * HIDDEN])
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
    let client = |name: &str| training(internet.host(2), &goldens, &bootstrap.address, &directory.path().join(name));
    let (losses, _) = run(client("run")?)?;
    assert_eq!(losses.len().to_string(), STEPS);
    let count = knocks(victim)?;
    let seconds = started.elapsed().as_secs();
    eprintln!("strangers: {} addresses of the victim in records: {count} connections in {seconds} s", LIARS.len() * 16);
    // Three honest nodes, each with what it may try at once and one attempt in ten seconds.
    assert!(count <= 3 * (16 + seconds / 10 + 1), "{count} connections in {seconds} s");
    Ok(())
}
