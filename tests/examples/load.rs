//! One small server and many clients that ask for more than it can do.
//!
//! usage: cargo run --release --example load -- [CLIENTS] [SECONDS] [LEECHES]
//!
//! Clients differ in how much they ask for, a quarter of them is greedy. Leeches, at an address of their own, claim memory, wait, reserve and hand over for nobody. Prints what each kind got, what the busiest got
//! beside the least, and the server's memory over time. `petals-node` must have been built.

use std::time::{Duration, Instant};

use petals_e2e::{Habit, ProcessSwarm, RandomModel, Share, Target, load, unfairness};
use petals_model::Checkpoint;

const HABITS: [Habit; 4] = [
    Habit { in_flight: 32, rows: 256 },
    Habit { in_flight: 8, rows: 64 },
    Habit { in_flight: 4, rows: 32 },
    Habit { in_flight: 4, rows: 128 },
];
const WARM_UP: Duration = Duration::from_secs(5);
const REQUEST_MEMORY: &str = "512M";

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let clients = numbers.next().transpose()?.unwrap_or(64);
    let seconds = numbers.next().transpose()?.unwrap_or(60) as u64;
    let leeches = numbers.next().transpose()?.unwrap_or(0);
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("random");
    let model = RandomModel::MEDIUM;
    model.write(&directory)?;
    let mut swarm = ProcessSwarm::start(&directory, &[])?;
    let blocks = format!("0..{}", model.blocks);
    let server = swarm.spawn_server(&["--blocks", &blocks, "--request-bytes", REQUEST_MEMORY])?;
    server.event("ready")?;
    swarm.servers.push(server);
    let checkpoint = Checkpoint::open(&directory)?;
    let server = &swarm.servers[0];
    let target = Target {
        address: server.address.clone(),
        model: checkpoint.model_id(None)?,
        span: checkpoint.blocks(),
        hidden: model.hidden,
    };
    let habits: Vec<Habit> = (0..clients).map(|client| HABITS[client % HABITS.len()]).collect();
    println!(
        "{clients} clients, {leeches} leeches, {seconds} s, hidden {}, {} blocks, {REQUEST_MEMORY} for requests\n",
        model.hidden, model.blocks
    );
    let started = Instant::now();
    let before = server.resident_bytes()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (shares, memory) = runtime.block_on(async {
        let mut memory = vec![before];
        let sample = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                memory.extend(server.resident_bytes());
            }
        };
        let shares = tokio::select! {
            shares = load(&target, &habits, leeches, WARM_UP, Duration::from_secs(seconds)) => shares?,
            () = sample => Vec::new(),
        };
        anyhow::Ok((shares, memory))
    })?;
    println!("| in flight | rows | clients | passes each | row blocks/s each | least | most | busy |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for habit in HABITS {
        let same = |share: &&Share| (share.habit.in_flight, share.habit.rows) == (habit.in_flight, habit.rows);
        let kind: Vec<&Share> = shares.iter().filter(same).collect();
        let mean = |value: fn(&Share) -> u64| {
            kind.iter().map(|share| value(share)).sum::<u64>() as f64 / kind.len().max(1) as f64
        };
        let work = || kind.iter().map(|share| share.row_blocks / seconds.max(1));
        println!(
            "| {} | {} | {} | {:.0} | {:.0} | {} | {} | {:.0} |",
            habit.in_flight,
            habit.rows,
            kind.len(),
            mean(|share| share.passes),
            mean(|share| share.row_blocks) / seconds.max(1) as f64,
            work().min().unwrap_or(0),
            work().max().unwrap_or(0),
            mean(|share| share.busy),
        );
    }
    let total: u64 = shares.iter().map(|share| share.row_blocks).sum();
    let mib = |bytes: &u64| bytes >> 20;
    let half = memory.len() / 2;
    println!(
        "\nall clients together: {:.0} row blocks/s; most beside least: {:.2}",
        total as f64 / seconds.max(1) as f64,
        unfairness(&shares)
    );
    println!(
        "server memory: {} MiB before, at most {} MiB in the first half and {} MiB in the second, {:.0} s in all",
        mib(&before),
        mib(memory[..half].iter().max().unwrap_or(&0)),
        mib(memory[half..].iter().max().unwrap_or(&0)),
        started.elapsed().as_secs_f64(),
    );
    Ok(())
}
