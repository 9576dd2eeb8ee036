//! Against what Hugging Face transformers and torch's autograd computed (tests/oracle, tests/goldens).
//!
//! `PETALS_TEST_DEVICE` (default `cpu`) chooses the device and `PETALS_GOLDENS` the goldens' folder, so that this binary
//! can be carried to a machine with a GPU. There, tolerances are ten times as wide: products are rounded differently. `PETALS_TEST_DTYPE` (default `f32`) is that
//! of the weights. What was recorded is of weights in f32, from which rounding them leads away by several percent in models as small and random as these; so with another dtype everything
//! is compared with what burn's operations in f32 make of the same rounded weights, which the same test with f32 holds against the recordings.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for production code")]

use std::env;

use petals_model::{BlockStack, ClientModel, Device, Dtype, ForwardPass, Keep, LossRules, OutputGrads, Stash};
use petals_protocol::{Injection, PassLayout, Span, WeightChange};

use golden::{Golden, families};
use tables::Tables;

mod gguf;
mod golden;
mod tables;

const MODES: [&str; 3] = ["ptune", "add", "replace"];
/// Block ranges of one, two and three servers.
const SPLITS: [&[u32]; 3] = [&[0, 4], &[0, 1, 4], &[0, 2, 3, 4]];

fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs()));
    assert!(worst <= tolerance * largest, "{what}: off by {:e} of the largest, {largest}", worst / largest);
}

/// A model cut into spans, one stack each, as on several servers.
struct Swarm {
    client: ClientModel,
    stacks: Vec<BlockStack>,
}

struct Run {
    text: Vec<f32>,
    stashes: Vec<Stash>,
}

impl Swarm {
    fn load(golden: &Golden, split: &[u32], device: &Device) -> Self {
        let checkpoint = golden.checkpoint();
        let load = |ends: &[u32]| checkpoint.load_span(Span::new(ends[0], ends[1]).unwrap(), device, dtype()).unwrap();
        Self {
            client: checkpoint.load_client(petals_model::Dtype::F32).unwrap(),
            stacks: split.windows(2).map(load).collect(),
        }
    }

    fn forward(&self, rows: &[Vec<u32>], tables: Option<&Tables>, read: Option<Vec<u32>>, keep: Keep) -> Run {
        let mut text = self.client.embed(&rows.concat()).unwrap();
        let mut prefix = tables.and_then(|t| t.prefix.clone()).map(|rows| self.client.enter(rows));
        let mut stashes = Vec::new();
        for (number, stack) in self.stacks.iter().enumerate() {
            let layout = PassLayout {
                span: stack.span(),
                lengths: rows.iter().map(|row| row.len() as u32).collect(),
                prefix_len: tables.map_or(0, |t| t.m as u32),
                injection: tables.map_or(Injection::None, |t| t.injection),
                weights: tables.map_or(WeightChange::None, |t| t.weights),
                read_rows: read.clone().filter(|_| number + 1 == self.stacks.len()),
            };
            let tables = tables.and_then(|t| {
                t.entered(&self.client).map(|all| {
                    let table = all.len() / 4;
                    all[layout.span.start() as usize * table..layout.span.end() as usize * table].to_vec()
                })
            });
            let output = stack.forward(ForwardPass { layout: &layout, text, prefix, tables }, keep).unwrap();
            let stash = output.stash.unwrap();
            let estimate = if keep == Keep::Inputs {
                stack.input_bytes_estimate(&layout)
            } else {
                stack.stash_bytes_estimate(&layout)
            };
            assert_eq!(stash.bytes(), estimate);
            (text, prefix) = (output.text, output.prefix);
            stashes.push(stash);
        }
        Run { text, stashes }
    }

    /// Gradients of the prefix that entered and of all tables, in the order of the blocks.
    fn backward(&self, run: Run, text: Vec<f32>) -> (Option<Vec<f32>>, Vec<f32>) {
        let last = run.stashes.last().unwrap().layout().clone();
        let zeros = vec![0.0; last.prefix_rows() * self.client.config().hidden_size];
        let mut grads = OutputGrads { text, prefix: last.returns_prefix().then_some(zeros) };
        let mut tables = Vec::new();
        for (number, (stack, stash)) in self.stacks.iter().zip(run.stashes).enumerate().rev() {
            let back = stack.backward(stash, grads, number > 0).unwrap();
            tables = [back.tables.unwrap_or_default(), tables].concat();
            grads = OutputGrads { text: back.text.unwrap_or_default(), prefix: back.prefix };
        }
        (grads.prefix, tables)
    }
}

/// The device under test, and on the CPU the variant without kernels too.
fn devices() -> Vec<Device> {
    match env::var("PETALS_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned()).as_str() {
        "cpu" => vec![Device::cpu(), Device::reference()],
        other => vec![other.parse().unwrap()],
    }
}

/// Every way to cut a model on every device; of another device than the CPU one way for each family, because one in software takes its time.
fn splits(family: usize) -> Vec<(&'static [u32], Device)> {
    let devices = devices();
    let all = SPLITS.into_iter().flat_map(|split| devices.iter().map(move |device| (split, device.clone())));
    if devices.len() > 1 { all.collect() } else { all.skip(family % SPLITS.len()).take(1).collect() }
}

/// That of the weights.
fn dtype() -> Dtype {
    env::var("PETALS_TEST_DTYPE").map_or(Dtype::F32, |name| name.parse().unwrap())
}

/// How much wider tolerances are than on the CPU and by Vulkan, where f32 is f32.
fn slack(device: &Device) -> f32 {
    let slack = match device.to_string().starts_with("cpu") {
        // With weights that are not f32 its kernels round rows too.
        true if dtype() != Dtype::F32 => 3000.0,
        true => 1.0,
        false if dtype() != Dtype::F32 => 10.0,
        false if device.to_string().starts_with("cuda") => 10.0,
        false => 1.0,
    };
    println!("{device}, {}: tolerances are {slack} times as wide", dtype());
    slack
}

/// What computes in place of the recordings, where those are of other weights.
fn in_place_of_recordings(golden: &Golden) -> Option<Swarm> {
    (dtype() != Dtype::F32).then(|| Swarm::load(golden, SPLITS[0], &Device::reference()))
}

#[test]
fn every_block_and_every_span_has_the_recorded_outputs() {
    for family in families() {
        let golden = Golden::read(&family);
        let states = golden.tensor("hidden_states");
        let layer = states.len() / 5;
        let other = in_place_of_recordings(&golden);
        for device in devices() {
            let whole = golden.checkpoint().load_span(Span::new(0, 4).unwrap(), &device, dtype()).unwrap();
            for (start, end) in [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (1, 3)] {
                let span = Span::new(start, end).unwrap();
                let tolerance = 1e-5 * slack(&device);
                let layout = PassLayout {
                    span,
                    lengths: vec![9; 3],
                    prefix_len: 0,
                    injection: Injection::None,
                    weights: Default::default(),
                    read_rows: None,
                };
                let text = states[start as usize * layer..][..layer].to_vec();
                let output = |stack: &BlockStack| {
                    let pass = ForwardPass { layout: &layout, text: text.clone(), prefix: None, tables: None };
                    stack.forward(pass, Keep::Nothing).unwrap().text
                };
                let expected = match &other {
                    Some(other) => output(&other.stacks[0]),
                    None => states[end as usize * layer..][..layer].to_vec(),
                };
                assert_close(&format!("{family} {span} on {device}"), &output(&whole), &expected, tolerance);
            }
        }
    }
}

#[test]
fn logits_are_the_recorded_ones_in_every_mode_and_split() {
    for (number, family) in families().into_iter().enumerate() {
        let golden = Golden::read(&family);
        for (split, device) in splits(number) {
            let swarm = Swarm::load(&golden, split, &device);
            let (rows, other) = (golden.rows(false), in_place_of_recordings(&golden));
            let tolerance = 1e-4 * slack(&device);
            let check = |what: &str, tables: Option<&Tables>, recorded: &str| {
                let logits = |swarm: &Swarm| {
                    swarm.client.lm_logits(&swarm.forward(&rows, tables, None, Keep::Inputs).text).unwrap()
                };
                let expected = other.as_ref().map_or_else(|| golden.tensor(recorded), logits);
                assert_close(&format!("{family} {what} {split:?} on {device}"), &logits(&swarm), &expected, tolerance);
            };
            check("", None, "logits");
            for mode in MODES {
                check(mode, Some(&Tables::read(&golden, mode)), &format!("logits.{mode}"));
            }
        }
    }
}

/// The text rows that a task reads, and their labels.
fn reads(golden: &Golden, rows: &[Vec<u32>], task: &str) -> (Vec<u32>, Vec<u32>) {
    let (mut read, mut labels, mut start) = (Vec::new(), golden.numbers("labels"), 0);
    if task == "causal-lm" {
        labels.clear();
    }
    for row in rows {
        let end = start + row.len() as u32;
        if task == "causal-lm" {
            read.extend(start..end - 1);
            labels.extend(&row[1..]);
        } else {
            read.push(end - 1);
        }
        start = end;
    }
    (read, labels)
}

/// Mean loss with the score head's gradient, and gradients of the prefix that entered and of all blocks' tables.
type Stepped = ((f64, Option<Vec<f32>>), (Option<Vec<f32>>, Vec<f32>));

fn step_with(
    golden: &Golden,
    swarm: &Swarm,
    rows: &[Vec<u32>],
    (tables, task): (&Tables, &str),
    keep: Keep,
) -> Stepped {
    let (read, labels) = reads(golden, rows, task);
    let run = swarm.forward(rows, Some(tables), Some(read), keep);
    let scale = 1.0 / labels.len() as f32;
    let scaled = |grad: Vec<f32>| grad.into_iter().map(|g| g * scale).collect::<Vec<f32>>();
    let (loss, grad, score) = if task == "causal-lm" {
        let loss = swarm.client.lm_loss(&run.text, &labels, LossRules::default()).unwrap();
        (loss.loss_sum, loss.grad, None)
    } else {
        let loss = swarm.client.class_loss(&run.text, &golden.tensor("score"), &labels, LossRules::default()).unwrap();
        (loss.loss_sum, loss.hidden_grad, Some(scaled(loss.score_grad)))
    };
    ((loss * f64::from(scale), score), swarm.backward(run, scaled(grad)))
}

/// Mean loss, and gradients by table name.
fn step(
    golden: &Golden,
    swarm: &Swarm,
    rows: &[Vec<u32>],
    (mode, task): (&str, &str),
    keep: Keep,
) -> (f64, Vec<(&'static str, Vec<f32>)>) {
    let tables = Tables::read(golden, mode);
    let ((loss, score), (prefix, mut of_blocks)) = step_with(golden, swarm, rows, (&tables, task), keep);
    let mut named: Vec<_> = score.map(|score| ("score", score)).into_iter().collect();
    match tables.injection {
        Injection::Replace => {
            let table = tables.m * swarm.client.config().hidden_size;
            named.push(("Q", of_blocks.split_off(table)));
            let entered = &tables.tables.as_ref().unwrap()[..table];
            named.push(("P", swarm.client.enter_back(entered, of_blocks)));
        }
        _ => {
            let entered = tables.prefix.as_ref().unwrap();
            named.push(("P", swarm.client.enter_back(entered, prefix.unwrap())));
            if tables.injection == Injection::Add {
                named.push(("Q", of_blocks));
            }
        }
    }
    (loss, named)
}

#[test]
fn losses_and_gradients_are_the_recorded_ones_in_every_mode_task_split_and_stash() {
    for (number, family) in families().into_iter().enumerate() {
        let golden = Golden::read(&family);
        for (split, device) in splits(number) {
            let swarm = Swarm::load(&golden, split, &device);
            let (slack, other) = (slack(&device), in_place_of_recordings(&golden));
            let runs = MODES.into_iter().flat_map(|mode| ["causal-lm", "seq-cls"].map(|task| (mode, task)));
            for ((mode, task), keep) in runs.flat_map(|run| [Keep::Everything, Keep::Inputs].map(|keep| (run, keep))) {
                let step = |swarm| step(&golden, swarm, &golden.rows(true), (mode, task), keep);
                let (loss, grads) = step(&swarm);
                let other = other.as_ref().map(step);
                let expected = match &other {
                    Some((loss, _)) => *loss,
                    None => golden.scalars[format!("loss.{mode}.{task}")].as_f64().unwrap(),
                };
                assert!(
                    (loss - expected).abs() < 1e-5 * f64::from(slack) * expected,
                    "{family} {mode} {task} on {device}: loss {loss} for {expected}"
                );
                for (number, (table, grad)) in grads.iter().enumerate() {
                    let expected = match &other {
                        Some((_, grads)) => grads[number].1.clone(),
                        None => golden.tensor(&format!("grad.{mode}.{task}.{table}")),
                    };
                    let what = format!("{family} {mode} {task} {table} {split:?} {keep:?} on {device}");
                    assert_close(&what, grad, &expected, 1e-4 * slack);
                }
            }
        }
    }
}

/// What each block may get besides prompts, alone and beside them.
const KINDS: [&str; 5] = ["lora", "ia3", "prefix", "replace+lora", "prefix+ia3"];

#[test]
fn adapters_of_every_kind_have_the_recorded_logits_losses_and_gradients() {
    for (number, family) in families().into_iter().enumerate() {
        let golden = Golden::read(&family);
        let adapters = golden.adapters();
        let recorded = adapters.scalars["kinds"].as_array();
        let recorded =
            recorded.map_or(KINDS.to_vec(), |kinds| kinds.iter().map(|kind| kind.as_str().unwrap()).collect());
        for (split, device) in splits(number) {
            let swarm = Swarm::load(&golden, split, &device);
            let (slack, other) = (slack(&device), in_place_of_recordings(&golden));
            for kind in KINDS.into_iter().filter(|kind| recorded.contains(kind)) {
                let tables = Tables::of_kind(&adapters, kind);
                let what = format!("{family} {kind} {split:?} on {device}");
                let logits = |swarm: &Swarm| {
                    let run = swarm.forward(&golden.rows(false), Some(&tables), None, Keep::Inputs);
                    swarm.client.lm_logits(&run.text).unwrap()
                };
                let expected = other.as_ref().map_or_else(|| adapters.tensor(&format!("logits.{kind}")), logits);
                assert_close(&what, &logits(&swarm), &expected, 1e-4 * slack);
                let runs = ["causal-lm", "seq-cls"].into_iter();
                for (task, keep) in runs.flat_map(|task| [Keep::Everything, Keep::Inputs].map(|keep| (task, keep))) {
                    let step = |swarm| step_with(&golden, swarm, &golden.rows(true), (&tables, task), keep);
                    let (loss, grad) = step(&swarm);
                    let (expected, of_tables) = match other.as_ref().map(step) {
                        Some((loss, grad)) => (loss.0, grad.1),
                        None => {
                            let loss = adapters.scalars[format!("loss.{kind}.{task}")].as_f64().unwrap();
                            (loss, adapters.tensor(&format!("grad.{kind}.{task}")))
                        }
                    };
                    let error = (loss.0 - expected).abs() / expected;
                    assert!(error < 1e-5 * f64::from(slack), "{what} {task}: loss {} for {expected}", loss.0);
                    let expected = of_tables;
                    assert_close(&format!("{what} {task} {keep:?}"), &grad.1, &expected, 1e-4 * slack);
                }
            }
        }
    }
}

#[test]
fn experts_that_stay_in_their_files_compute_what_loaded_ones_do() {
    for family in ["mixtral", "qwen2-moe", "gpt-oss"] {
        let golden = Golden::read(family);
        let span = Span::new(0, 4).unwrap();
        let (loaded, in_files) = (golden.checkpoint(), golden.checkpoint().with_experts_in_files());
        assert!(in_files.span_bytes(span, Dtype::F32) < loaded.span_bytes(span, Dtype::F32));
        let swarm = |checkpoint: petals_model::Checkpoint| Swarm {
            client: checkpoint.load_client(Dtype::F32).unwrap(),
            stacks: vec![checkpoint.load_span(span, &Device::cpu(), Dtype::F32).unwrap()],
        };
        let (loaded, in_files) = (swarm(loaded), swarm(in_files));
        assert!(in_files.stacks[0].weight_bytes() < loaded.stacks[0].weight_bytes());
        let expected = step(&golden, &loaded, &golden.rows(true), ("ptune", "causal-lm"), Keep::Everything);
        let got = step(&golden, &in_files, &golden.rows(true), ("ptune", "causal-lm"), Keep::Everything);
        assert!((got.0 - expected.0).abs() < 1e-5 * expected.0, "{family}: loss {} for {}", got.0, expected.0);
        for ((table, got), (_, expected)) in got.1.iter().zip(&expected.1) {
            assert_close(&format!("{family}, {table}"), got, expected, 1e-4);
        }
    }
}
