//! How fast the blocks are on this machine: measured once, and kept on disk for the next start.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_model::{BlockStack, ForwardPass, Keep, Place};
use petals_protocol::{Fingerprint, Injection, PassLayout, Span};
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, System};

/// Rows of the pass that measures throughput.
const ROWS: u32 = 128;
/// Passes that are timed, as far as they fit into [`PATIENCE`]. The median counts, which one disturbance does not change.
const FORWARDS: usize = 5;
const DECODES: usize = 21;
/// After this long no further pass is begun.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of weights that a single row is sent through, if there are as many: more than processors keep in their caches. Of many rows
/// one block is enough, as what they wait for is arithmetic.
const UNCACHED: u64 = 512 << 20;
/// More than any machine does.
const IMPOSSIBLE: f64 = 1e15;

/// Speed of the blocks, however many there are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rates {
    /// Rows times blocks per second, forward.
    pub(crate) forward: f64,
    /// Blocks per second, with one row.
    pub(crate) decode: f64,
}

/// Where measurements are kept.
#[derive(Debug, Clone, Default)]
pub struct MeasureConfig {
    /// Directory of the measurements; `None` keeps none.
    pub cache_dir: Option<PathBuf>,
    /// Measure although there is a measurement.
    pub again: bool,
}

/// A measurement on disk, with everything that it depends on.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    of: String,
    rates: Rates,
}

/// Compiles the kernels of `blocks`, and gives their rates, from an earlier measurement or a new one, of each part by itself. A cache that cannot be read or written costs the time
/// of measuring, no more.
pub(crate) fn rates(
    config: &MeasureConfig,
    fingerprint: Fingerprint,
    blocks: &BlockStack,
    hidden: usize,
) -> anyhow::Result<Rates> {
    let division = blocks.division();
    let mut parts = Vec::with_capacity(division.parts().len());
    for (span, place) in division.parts() {
        let part = blocks.part(*span).context("a part of the blocks is not there")?;
        parts.push((span.len(), rates_of_part(config, fingerprint, (&part, place), hidden)?));
    }
    Ok(one_after_the_other(&parts))
}

/// The rates of parts through which everything goes, given how many blocks each has.
fn one_after_the_other(parts: &[(usize, Rates)]) -> Rates {
    if let [(_, only)] = parts {
        return *only;
    }
    let blocks = parts.iter().map(|(count, _)| *count).sum::<usize>() as f64;
    let rate =
        |of: fn(&Rates) -> f64| blocks / parts.iter().map(|(count, rates)| *count as f64 / of(rates)).sum::<f64>();
    Rates { forward: rate(|rates| rates.forward), decode: rate(|rates| rates.decode) }
}

fn rates_of_part(
    config: &MeasureConfig,
    fingerprint: Fingerprint,
    (part, place): (&BlockStack, &Place),
    hidden: usize,
) -> anyhow::Result<Rates> {
    // What a software device compiles takes longer than the passes of a test or a demo.
    if place.device.is_gpu() {
        let started = Instant::now();
        part.warm_up()?;
        tracing::info!(seconds = started.elapsed().as_secs_f32(), "kernels are compiled");
    }
    let of = description(fingerprint, Some(part.span().len()), place);
    let file = config.cache_dir.as_deref().map(|directory| file(directory, &of));
    let known = file.as_deref().filter(|_| !config.again).and_then(|file| read(file, &of));
    if let Some(rates) = known {
        tracing::debug!(device = %place.device, ?rates, "speed known from an earlier start");
        return Ok(rates);
    }
    let rates = measure(part, hidden)?;
    for of in [of, description(fingerprint, None, place)] {
        let Some(directory) = &config.cache_dir else { break };
        if let Err(error) = write(&self::file(directory, &of), &Entry { of, rates }) {
            tracing::warn!("the measured speed is not kept: {error:#}");
        }
    }
    Ok(rates)
}

/// What was measured last of blocks of a model on a device, however many they were.
pub(crate) fn known(config: &MeasureConfig, fingerprint: Fingerprint, place: &Place) -> Option<Rates> {
    let of = description(fingerprint, None, place);
    read(&file(config.cache_dir.as_deref()?, &of), &of)
}

/// Everything that a measurement depends on. Without a number of blocks it is the last one of any number.
fn description(fingerprint: Fingerprint, blocks: Option<usize>, place: &Place) -> String {
    let Place { device, dtype, kv_dtype } = place;
    let count = blocks.map_or_else(|| "any".to_owned(), |count| count.to_string());
    let version = env!("CARGO_PKG_VERSION");
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    let machine = match device.hardware() {
        Some(name) => name.to_owned(),
        None if device.to_string().starts_with("cuda") => gpu_names(),
        None => format!("{threads} x {}", processor_name()),
    };
    format!("{fingerprint} {count} blocks {device} {dtype} kv {kv_dtype} version {version} {machine}")
}

/// What the processor is called.
pub(crate) fn processor_name() -> String {
    let mut system = System::new();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let name = system.cpus().first().map(|cpu| cpu.brand().trim()).filter(|name| !name.is_empty());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// The models of all GPUs, as the driver lists them on Linux.
fn gpu_names() -> String {
    let Ok(gpus) = std::fs::read_dir("/proc/driver/nvidia/gpus") else { return String::new() };
    let model = |gpu: std::fs::DirEntry| {
        let text = std::fs::read_to_string(gpu.path().join("information")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Model:")).map(|model| model.trim().to_owned())
    };
    let mut names: Vec<String> = gpus.flatten().filter_map(model).collect();
    names.sort();
    names.join(", ")
}

fn file(directory: &Path, of: &str) -> PathBuf {
    let name = blake3::hash(of.as_bytes()).to_hex();
    directory.join("speed").join(format!("{}.json", &name[..16]))
}

fn read(file: &Path, of: &str) -> Option<Rates> {
    let entry: Entry = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let possible = |rate: f64| rate > 0.0 && rate < IMPOSSIBLE;
    (entry.of == of && possible(entry.rates.forward) && possible(entry.rates.decode)).then_some(entry.rates)
}

/// Writes beside the file and renames, so that two servers that start at once do not read half a file.
fn write(file: &Path, entry: &Entry) -> anyhow::Result<()> {
    let directory = file.parent().context("a file without a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // A name that nobody can foresee: where others may write too, a link could lie in wait under one that they can.
    let mut beside = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot write in {}", directory.display()))?;
    beside
        .write_all(&serde_json::to_vec(entry)?)
        .with_context(|| format!("cannot write in {}", directory.display()))?;
    beside.persist(file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}

fn measure(blocks: &BlockStack, hidden: usize) -> anyhow::Result<Rates> {
    let (one, several) = (first_blocks(blocks, 1), first_blocks(blocks, UNCACHED));
    // A model may be for shorter texts.
    let rows = u32::try_from(blocks.config().max_position_embeddings).unwrap_or(u32::MAX).min(ROWS);
    let forward = median(&one, hidden, rows, FORWARDS)? / one.span().len() as f64;
    let decode = median(&several, hidden, 1, DECODES)? / several.span().len() as f64;
    Ok(Rates { forward: f64::from(rows) / forward, decode: 1.0 / decode })
}

/// As many blocks as have so many bytes of weights, at least one: all are alike, and a start should not take longer because many are
/// served.
fn first_blocks(blocks: &BlockStack, bytes: u64) -> BlockStack {
    let (span, one) = (blocks.span(), blocks.weight_bytes() / blocks.span().len() as u64);
    let count = bytes.div_ceil(one.max(1)).clamp(1, span.len() as u64) as u32;
    let part = Span::new(span.start(), span.start() + count).ok().and_then(|first| blocks.part(first));
    part.expect("at least one block, and not more than there are")
}

/// Seconds of a forward of `rows` rows through all blocks: the median of several after one for warm-up.
fn median(blocks: &BlockStack, hidden: usize, rows: u32, repeats: usize) -> anyhow::Result<f64> {
    let layout = PassLayout {
        span: blocks.span(),
        lengths: vec![rows],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let run = || {
        let text = (0..rows as usize * hidden).map(|n| ((n % 17) as f32 - 8.25) / 100.0).collect();
        let started = Instant::now();
        blocks.forward(ForwardPass { layout: &layout, text, prefix: None, tables: None }, Keep::Nothing)?;
        anyhow::Ok(started.elapsed().as_secs_f64())
    };
    let started = Instant::now();
    run()?;
    let mut times = vec![run()?];
    while times.len() < repeats && started.elapsed() < PATIENCE {
        times.push(run()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2].max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_measurement_is_kept_for_the_next_start_and_no_other_machine_or_model() {
        let directory = std::env::temp_dir().join(format!("petals-speed-{}", std::process::id()));
        let config = MeasureConfig { cache_dir: Some(directory.clone()), again: false };
        let blocks = fixture::stack();
        let (hidden, print) = (blocks.config().hidden_size, Fingerprint([1; 8]));
        let first = rates(&config, print, &blocks, hidden).unwrap();
        assert!(first.forward > 0.0 && first.decode > 0.0, "{first:?}");
        // Two measurements never agree so closely: the second is the one that was kept (and printed as text on the way).
        let second = rates(&config, print, &blocks, hidden).unwrap();
        assert!((second.forward / first.forward - 1.0).abs() < 1e-12, "{second:?} for {first:?}");
        let place = blocks.division().parts()[0].1.clone();
        let of = description(print, Some(blocks.span().len()), &place);
        // Of any number of blocks.
        let known_rates = known(&config, print, &place).unwrap();
        assert!((known_rates.decode / first.decode - 1.0).abs() < 1e-12, "{known_rates:?} for {first:?}");
        assert_eq!(known(&config, Fingerprint([2; 8]), &place), None);
        assert_eq!(read(&file(&directory, &of), "something else"), None);
        let stored = Rates { forward: 7.0, decode: 8.0 };
        write(&file(&directory, &of), &Entry { of: of.clone(), rates: stored }).unwrap();
        assert_eq!(rates(&config, print, &blocks, hidden).unwrap(), stored);
        assert_ne!(rates(&config, Fingerprint([2; 8]), &blocks, hidden).unwrap(), stored);
        assert_ne!(rates(&MeasureConfig { again: true, ..config.clone() }, print, &blocks, hidden).unwrap(), stored);
        for nonsense in ["", "{}", r#"{"of":"x","rates":{"forward":-1.0,"decode":1.0}}"#] {
            std::fs::write(file(&directory, &of), nonsense).unwrap();
            assert!(rates(&config, print, &blocks, hidden).unwrap().forward > 0.0);
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_goes_through_several_parts_takes_the_time_of_all() {
        let rates = |forward, decode| Rates { forward, decode };
        assert_eq!(one_after_the_other(&[(3, rates(7.0, 8.0))]), rates(7.0, 8.0));
        // Three blocks in 0.1 s each and one in a whole second.
        assert!(
            (one_after_the_other(&[(3, rates(10.0, 4.0)), (1, rates(1.0, 4.0))]).forward - 4.0 / 1.3).abs() < 1e-12
        );
        assert_eq!(one_after_the_other(&[(3, rates(10.0, 4.0)), (1, rates(1.0, 4.0))]).decode, 4.0);
    }
}
