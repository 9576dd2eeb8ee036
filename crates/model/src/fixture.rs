//! Tiny random checkpoints for tests.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype as FileDtype, TensorView};
use serde_json::{Value, json};

use petals_protocol::Span;

use crate::device::{Device, Dtype, KvDtype};
use crate::stack::{Division, Place};

/// A checkpoint directory that is removed when dropped.
pub(crate) type Dir = tempfile::TempDir;

/// Every engine that can be tested here: the CPU's, the reference, and that of the device named in `PETALS_TEST_DEVICE`.
pub(crate) fn devices() -> Vec<Device> {
    let named = std::env::var("PETALS_TEST_DEVICE").ok().map(|name| name.parse().expect("a device that is here"));
    [Device::cpu(), Device::reference()].into_iter().chain(named).collect()
}

/// The three blocks of [`config`] on each engine alone, and divided among devices.
pub(crate) fn divisions() -> Vec<Division> {
    let [host, reference] = [Device::cpu(), Device::reference()];
    let divided = [
        vec![(1, host.clone()), (2, host.clone())],
        vec![(2, host.clone()), (1, reference.clone())],
        vec![(1, reference.clone()), (1, host.clone()), (1, reference.clone())],
    ];
    let other = |device: &Device| *device != host && *device != reference;
    let named = devices().into_iter().filter(other).map(|device| vec![(2, device), (1, host.clone())]);
    let whole = devices().into_iter().map(|device| vec![(3, device)]);
    whole.chain(divided.clone()).chain(named).map(|counts| divided_as(&counts)).collect()
}

/// The three blocks of [`config`] in f32, the first so many on the first device and so on.
pub(crate) fn divided_as(counts: &[(usize, Device)]) -> Division {
    let place = |device: &Device| Place { device: device.clone(), dtype: Dtype::F32, kv_dtype: KvDtype::F32 };
    let counts = counts.iter().map(|(count, device)| (*count, place(device)));
    Division::new(Span::new(0, 3).unwrap(), counts).expect("three blocks")
}

/// Deterministic values in [-1, 1).
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // The first few values still show how close two seeds are.
    (0..count + 8).map(|_| next()).skip(8).collect()
}

/// A small configuration with grouped queries, biases and head norms: everything that a block can have.
pub(crate) fn config() -> Value {
    json!({
        "model_type": "qwen3", "attention_bias": true, "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 300, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    })
}

/// All tensors of a model with [`config`], in f32.
pub(crate) fn tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let (d, q, k, f) = (12, 24, 12, 20);
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![40, d]), ("model.norm.weight".to_owned(), vec![d])];
    shapes.push(("lm_head.weight".to_owned(), vec![40, d]));
    for block in 0..3 {
        let at = |name: &str| format!("model.layers.{block}.{name}");
        let vectors = [
            ("input_layernorm.weight", d),
            ("post_attention_layernorm.weight", d),
            ("self_attn.q_norm.weight", 6),
            ("self_attn.k_norm.weight", 6),
            ("self_attn.q_proj.bias", q),
            ("self_attn.k_proj.bias", k),
            ("self_attn.v_proj.bias", k),
            ("self_attn.o_proj.bias", d),
        ];
        shapes.extend(vectors.map(|(name, width)| (at(name), vec![width])));
        let matrices = [
            ("self_attn.q_proj.weight", [q, d]),
            ("self_attn.k_proj.weight", [k, d]),
            ("self_attn.v_proj.weight", [k, d]),
            ("self_attn.o_proj.weight", [d, q]),
            ("mlp.gate_proj.weight", [f, d]),
            ("mlp.up_proj.weight", [f, d]),
            ("mlp.down_proj.weight", [d, f]),
        ];
        shapes.extend(matrices.map(|(name, shape)| (at(name), shape.to_vec())));
    }
    let fill = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
        let mut values = noise(seed as u64 + 1, shape.iter().product());
        let (scale, shift) = if name.contains("norm") { (0.5, 1.0) } else { (0.6, 0.0) };
        values.iter_mut().for_each(|v| *v = *v * scale + shift);
        (name, (shape, values))
    };
    shapes.into_iter().enumerate().map(fill).collect()
}

/// Writes f32 tensors to one file.
pub(crate) fn write_file(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<_> = tensors.iter().map(|(name, (shape, values))| (name, shape.clone(), bytes(values))).collect();
    let view = |(name, shape, bytes)| (name, TensorView::new(FileDtype::F32, shape, bytes).unwrap());
    let views = data.iter().map(|(name, shape, bytes)| view((*name, shape.clone(), bytes.as_slice())));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A model in a single file.
pub(crate) fn model(config: &Value, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Dir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_file(&dir.path().join("model.safetensors"), tensors);
    dir
}

/// The model of [`config`] in a single file.
pub(crate) fn single() -> Dir {
    model(&config(), &tensors())
}

/// The same model, one file per block and one for the rest, with their index.
pub(crate) fn sharded() -> Dir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    let mut shards: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
    let mut map = BTreeMap::new();
    for (name, tensor) in tensors() {
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()).unwrap_or("rest");
        let file = format!("shard-{block}.safetensors");
        map.insert(name.clone(), file.clone());
        shards.entry(file).or_default().insert(name, tensor);
    }
    shards.iter().for_each(|(file, tensors)| write_file(&dir.path().join(file), tensors));
    std::fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    dir
}

/// Tensors as they are in files: dtype, shape and bytes, which need not fit together.
pub(crate) type Bytes = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// A model in a single file whose tensors may be anything.
pub(crate) fn raw_model(config: &Value, tensors: &Bytes) -> Dir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend(bytes);
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
    }
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

/// The tensors of such a model.
pub(crate) fn raw_tensors(dir: &Dir) -> Bytes {
    let file = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
    let tensor = |(name, entry): (String, Value)| {
        let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
        let [from, to]: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
        (name, (entry["dtype"].as_str().unwrap().to_owned(), shape, file[start..][from..to].to_vec()))
    };
    header.into_iter().map(tensor).collect()
}
