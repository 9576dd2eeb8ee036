//! A server that is asked for more than it can do. The figures are `scripts/bench-load`'s; here only what must hold.

use std::time::Duration;

use petals_e2e::{Habit, ProcessSwarm, RandomModel, Target, load, unfairness};
use petals_model::Checkpoint;

#[tokio::test(flavor = "multi_thread")]
async fn greedy_clients_get_no_more_than_others_and_memory_stays_bounded() -> anyhow::Result<()> {
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("random");
    let model = RandomModel { hidden: 256, intermediate: 704, blocks: 4, heads: 4, vocab: 64 };
    model.write(&directory)?;
    let mut swarm = ProcessSwarm::start(&directory, &[])?;
    let request_bytes: u64 = 64 << 20;
    let memory = ["--request-bytes", "64M", "--queue", "32", "--queue-per-peer", "16"];
    let server = swarm.spawn_server(&[&["--blocks", "0..4"][..], &memory].concat())?;
    server.event("ready")?;
    let before = server.resident_bytes()?;
    let checkpoint = Checkpoint::open(&directory)?;
    let target = Target {
        address: server.address.clone(),
        model: checkpoint.model_id(None)?,
        span: checkpoint.blocks(),
        hidden: model.hidden,
    };
    swarm.servers.push(server);
    // Two ask for many large passes at a time, and would fill the queue.
    let (greedy, modest) = (Habit { in_flight: 24, rows: 512 }, Habit { in_flight: 4, rows: 128 });
    let habits: Vec<Habit> = (0..8).map(|client| if client < 2 { greedy } else { modest }).collect();
    let shares = load(&target, &habits, 0, Duration::from_secs(2), Duration::from_secs(5)).await?;
    assert!(shares.iter().all(|share| share.passes > 0), "{shares:?}");
    assert!(shares[..2].iter().all(|share| share.busy > 0), "there was too little to do: {shares:?}");
    assert!(unfairness(&shares) < 2.5, "{shares:?}");
    let grown = swarm.servers[0].resident_bytes()?.saturating_sub(before);
    // Frames and their tensors in f32, beside what a pass takes.
    assert!(grown < 4 * request_bytes + (256 << 20), "{} MiB more", grown >> 20);
    Ok(())
}
