//! What narrow wires and narrow weights do to the loss.
//!
//! usage: cargo run --release --example wire_loss -- [STEPS] [DEVICE]
//!
//! Tunes the demo model through two servers (real processes over loopback) in each wire dtype, from the same start and in
//! the same order, and prints the losses beside those of f32. Then the same with blocks and head in every dtype of weights, from a
//! copy of the model whose weights are not bf16 already.
//!
//! With a device, such as `vulkan`, it does instead what that device's engine does to the loss: servers on it in f32 and in bf16, beside servers on the
//! processor, from the same copy. Programs need to have been built for the device (`--features petals-node/vulkan`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use petals_e2e::ProcessSwarm;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Steps whose losses are averaged for the comparison: single ones jump with their batch.
const LAST: usize = 10;
/// Longest start of a server.
const READY: Duration = Duration::from_secs(600);

/// Dtypes on the wire, the reference first.
const WIRES: [&str; 4] = ["f32", "bf16", "f16", "int8"];
/// Dtypes of the weights, the reference first.
const WEIGHTS: [&str; 4] = ["f32", "bf16", "int8", "int4"];

/// A task: its name, data, and how its tables are trained.
const TASKS: [(&str, &str, &[&str]); 3] = [
    (
        "seq-cls, deep replace",
        "reviews-train.jsonl",
        &["--task", "seq-cls", "--mode", "deep_ptune", "--lr", "1e-3", "--schedule", "linear"],
    ),
    (
        "causal-lm, deep add",
        "persona-train.jsonl",
        &["--task", "causal-lm", "--mode", "deep_ptune", "--injection", "add", "--lr", "1e-2", "--schedule", "linear"],
    ),
    ("causal-lm, ptune", "persona-train.jsonl", &["--task", "causal-lm", "--mode", "ptune", "--lr", "3e-2"]),
];

/// Losses of each step by what was compared, the reference first.
type Losses = Vec<(String, Vec<f64>)>;

fn main() -> anyhow::Result<()> {
    let steps: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let (data, model) = (demo.join("data"), demo.join("model"));
    let directory = tempfile::tempdir()?;
    let precise = directory.path().join("demo-f32");
    write_precise(&model, &precise)?;
    if let Some(device) = std::env::args().nth(2) {
        let mut of_tasks: Vec<Losses> = vec![Vec::new(); TASKS.len()];
        for (device, dtype) in [("cpu", "f32"), ("cpu", "bf16"), (&device, "f32"), (&device, "bf16")] {
            let swarm = swarm(&precise, device, dtype)?;
            train_all(&swarm, &data, &["--dtype", dtype], steps, &format!("{device}, {dtype}"), &mut of_tasks)?;
        }
        print_tables("servers", &of_tasks);
        return Ok(());
    }
    let mut wires: Vec<Losses> = vec![Vec::new(); TASKS.len()];
    for wire in WIRES {
        let swarm = swarm(&model, "cpu", "f32")?;
        train_all(&swarm, &data, &["--wire-dtype", wire], steps, wire, &mut wires)?;
    }
    let mut weights: Vec<Losses> = vec![Vec::new(); TASKS.len()];
    for dtype in WEIGHTS {
        let swarm = swarm(&precise, "cpu", dtype)?;
        train_all(&swarm, &data, &["--dtype", dtype], steps, dtype, &mut weights)?;
    }
    print_tables("wire", &wires);
    print_tables("weights", &weights);
    Ok(())
}

/// Every task through a swarm, with arguments of all, by the name of what is compared.
fn train_all(
    swarm: &ProcessSwarm,
    data: &Path,
    arguments: &[&str],
    steps: usize,
    name: &str,
    of_tasks: &mut [Losses],
) -> anyhow::Result<()> {
    for ((task, file, training), losses) in TASKS.iter().zip(of_tasks) {
        let started = Instant::now();
        let of_run = train(swarm, data.join(file), &[*training, arguments].concat(), steps)?;
        let (seconds, end) = (started.elapsed().as_secs_f64(), end(&of_run));
        eprintln!("{name}: {task}, {steps} steps in {seconds:.0} s, mean loss of the last {LAST} {end:.5}");
        losses.push((name.to_owned(), of_run));
    }
    Ok(())
}

/// A copy of a model in f32, every weight moved by up to half a step of bf16, so that rounding to bf16 changes it.
fn write_precise(model: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(model.join(file), to.join(file))?;
    }
    let bytes = std::fs::read(model.join("model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut moved = Vec::new();
    let mut state = 1u32;
    for (name, tensor) in tensors.iter() {
        anyhow::ensure!(tensor.dtype() == Dtype::BF16, "{name} is not bf16");
        let values = tensor.data().as_chunks::<2>().0.iter().flat_map(|&bits| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Bits of an f32 that a bf16 does not have.
            (u32::from(u16::from_le_bytes(bits)) << 16 | state >> 16).to_le_bytes()
        });
        moved.push((name.to_owned(), tensor.shape().to_vec(), values.collect::<Vec<u8>>()));
    }
    let views = moved.iter().map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)));
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(safetensors::serialize_to_file(views, None, &to.join("model.safetensors"))?)
}

fn swarm(model: &Path, device: &str, dtype: &str) -> anyhow::Result<ProcessSwarm> {
    let mut swarm = ProcessSwarm::start_with_device(model, device, &[])?;
    for span in ["0..4", "4..8"] {
        let server = swarm.spawn_server(&["--blocks", span, "--dtype", dtype])?;
        swarm.servers.push(server);
    }
    for server in &mut swarm.servers {
        // A device compiles its kernels first.
        server.ready = server.event_within("ready", READY)?;
    }
    Ok(swarm)
}

fn train(swarm: &ProcessSwarm, data: PathBuf, training: &[&str], steps: usize) -> anyhow::Result<Vec<f64>> {
    let out = tempfile::tempdir()?;
    let losses = swarm
        .tune("train")?
        .args(training)
        .args(&["--prefix-len", "8", "--batch-size", "16", "--warmup", "10", "--micro-batch-tokens", "256"])
        .args(&["--steps", &steps.to_string()])
        .path("--data", &data)
        .path("--out", &out.path().join("adapter"))
        .losses()?;
    anyhow::ensure!(losses.len() == steps, "{} losses of {steps} steps", losses.len());
    Ok(losses)
}

/// The loss at the end of a run.
fn end(losses: &[f64]) -> f64 {
    let last = &losses[losses.len().saturating_sub(LAST)..];
    last.iter().sum::<f64>() / last.len().max(1) as f64
}

fn print_tables(what: &str, of_tasks: &[Losses]) {
    for ((task, ..), runs) in TASKS.iter().zip(of_tasks) {
        print_table(what, task, runs);
    }
}

fn print_table(what: &str, task: &str, runs: &[(String, Vec<f64>)]) {
    let steps = runs.first().map_or(0, |(_, losses)| losses.len());
    let marks: Vec<usize> = [1, steps / 4, steps / 2, steps].into_iter().filter(|&step| step > 0).collect();
    let names: Vec<String> = marks.iter().map(|step| format!("step {step}")).collect();
    println!("\n### {task}\n");
    println!("| {what} | {} | mean of the last {LAST} | beside f32 | largest of any step |", names.join(" | "));
    println!("|---|{}---:|---:|---:|", "---:|".repeat(marks.len()));
    let Some((_, reference)) = runs.first() else { return };
    for (name, losses) in runs {
        let at: Vec<String> = marks.iter().map(|&step| format!("{:.4}", losses[step - 1])).collect();
        let largest = losses.iter().zip(reference).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        println!(
            "| {name} | {} | {:.4} | {:+.3} % | {:.3} % |",
            at.join(" | "),
            end(losses),
            100.0 * (end(losses) / end(reference) - 1.0),
            100.0 * largest
        );
    }
}
