//! Times how blocks are loaded, and how much memory that takes at most.
//!
//! usage: load_bench [MODEL_DIRECTORY [DTYPE]]
//!        load_bench hashes [MODEL_DIRECTORY]
//!
//! Without a directory a checkpoint of the shape of Llama-3.2-1B is made: 16 blocks in bf16, 1.95 GB. Prints, for each dtype, seconds,
//! bytes of weights, and what a process of its own had resident at most, weights and files, beside those bytes. The files come from the
//! system's cache but for the first time.
//!
//! With `hashes`: how much longer loading takes because the blocks' hashes are computed on the way. For each dtype the median of the ratios of neighbouring
//! loads, of which one has to hash and the other knows the hashes already.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use petals_model::{Checkpoint, Device, Dtype};

/// Pairs of loads of a dtype; the first one warms up.
const PAIRS: usize = 5;
/// Hidden size, width of keys, width of the MLP, blocks.
const SHAPE: [usize; 4] = [2048, 512, 8192, 16];

fn main() -> Result<(), Box<dyn Error>> {
    let own = tempfile::tempdir()?;
    let mut arguments = std::env::args().skip(1).peekable();
    let hashes = arguments.next_if(|first| first == "hashes").is_some();
    let given = arguments.next();
    let directory = given.as_deref().map_or(own.path(), Path::new);
    if given.is_none() {
        write_model(directory)?;
    }
    if hashes {
        return [Dtype::Bf16, Dtype::F32, Dtype::Int8].into_iter().try_for_each(|dtype| compare(directory, dtype));
    }
    if let Some(dtype) = arguments.next() {
        return measure(directory, dtype.parse()?);
    }
    // What one process has given back its allocator may keep, and the next dtype would take it unseen.
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::Int8, Dtype::Int4] {
        Command::new(std::env::current_exe()?).arg(directory).arg(dtype.to_string()).status()?;
    }
    Ok(())
}

fn measure(directory: &Path, dtype: Dtype) -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::open(directory)?;
    let before = resident("VmRSS:")?;
    let started = Instant::now();
    let stack = checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), dtype)?;
    let seconds = started.elapsed().as_secs_f64();
    let (weights, peak) = (stack.weight_bytes() as f64, (resident("VmHWM:")? - before) as f64);
    println!(
        "{dtype}: {seconds:.1} s, {:.2} GB of weights at {:.2} GB/s, at most {:.2} GB resident ({:.0} % of the weights)",
        weights / 1e9,
        weights / seconds / 1e9,
        peak / 1e9,
        100.0 * peak / weights
    );
    Ok(())
}

/// Loads with hashing and without, in turns.
fn compare(directory: &Path, dtype: Dtype) -> Result<(), Box<dyn Error>> {
    let load = |knows: bool| {
        let checkpoint = Checkpoint::open(directory)?;
        let started = Instant::now();
        if knows {
            checkpoint.weights_of(checkpoint.blocks())?;
        }
        let hashed = started.elapsed().as_secs_f64();
        checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), dtype)?;
        Ok::<_, Box<dyn Error>>((hashed, started.elapsed().as_secs_f64() - hashed))
    };
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    for number in 0..=PAIRS {
        let order = if number % 2 == 0 { [false, true] } else { [true, false] };
        let [first, second] = [load(order[0])?, load(order[1])?];
        let (hashing, knowing) = if order[0] { (second, first) } else { (first, second) };
        if number > 0 {
            pairs.push((hashing.1 / knowing.1, hashing.1, knowing.1));
            alone.push(knowing.0);
        }
    }
    pairs.sort_by(|one, other| one.0.total_cmp(&other.0));
    alone.sort_by(f64::total_cmp);
    let (ratio, with, without) = pairs[PAIRS / 2];
    let (least, most) = (pairs[0].0, pairs[PAIRS - 1].0);
    let hashed = alone[PAIRS / 2];
    println!(
        "{dtype}: {with:.2} s with hashing, {without:.2} s without, {ratio:.2} times ({least:.2} to {most:.2}); hashing by itself {hashed:.2} s"
    );
    Ok(())
}

/// A line of `/proc/self/status`, in bytes.
fn resident(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the system does not tell")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Values that look random, of the size that weights have.
fn write_model(directory: &Path) -> Result<(), Box<dyn Error>> {
    let [d, keys, mlp, blocks] = SHAPE;
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": {d}, "intermediate_size": {mlp}, "num_hidden_layers": {blocks},
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}}"#
    );
    std::fs::write(directory.join("config.json"), config)?;
    let matrices = [
        ("self_attn.q_proj", [d, d]),
        ("self_attn.k_proj", [keys, d]),
        ("self_attn.v_proj", [keys, d]),
        ("self_attn.o_proj", [d, d]),
        ("mlp.gate_proj", [mlp, d]),
        ("mlp.up_proj", [mlp, d]),
        ("mlp.down_proj", [d, mlp]),
        ("input_layernorm", [1, d]),
        ("post_attention_layernorm", [1, d]),
    ];
    let (mut header, mut offset) = (String::from("{"), 0);
    for (block, (name, [rows, columns])) in (0..blocks).flat_map(|block| matrices.map(|matrix| (block, matrix))) {
        let end = offset + 2 * rows * columns;
        let shape = if rows == 1 { format!("[{columns}]") } else { format!("[{rows},{columns}]") };
        let comma = if offset == 0 { "" } else { "," };
        header += &format!(
            r#"{comma}"model.layers.{block}.{name}.weight":{{"dtype":"BF16","shape":{shape},"data_offsets":[{offset},{end}]}}"#
        );
        offset = end;
    }
    header.push('}');
    let mut file = BufWriter::new(std::fs::File::create(directory.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 1u32;
    let values: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Between 0.008 and 0.03, of either sign.
            [(state >> 8) as u8, 0x3c | (state >> 24) as u8 & 0x80]
        })
        .collect();
    let mut left = offset;
    while left > 0 {
        let part = left.min(values.len());
        file.write_all(&values[..part])?;
        left -= part;
    }
    Ok(file.flush()?)
}
