//! Random models for benchmarks.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use safetensors::tensor::{Dtype as FileDtype, TensorView};

/// Values between -1 and 1.
pub(crate) fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Writes a checkpoint of random Llama blocks in f32: hidden size, the MLP's width, query heads, key heads, and how many.
pub(crate) fn write_model(dir: &Path, [d, mlp, heads, key_heads, blocks]: [usize; 5]) -> Result<(), Box<dyn Error>> {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": {d}, "intermediate_size": {mlp}, "num_hidden_layers": {blocks},
        "num_attention_heads": {heads}, "num_key_value_heads": {key_heads}, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5}}"#
    );
    let keys = d / heads * key_heads;
    let shapes = [
        ("input_layernorm", vec![d]),
        ("post_attention_layernorm", vec![d]),
        ("self_attn.q_proj", vec![d, d]),
        ("self_attn.k_proj", vec![keys, d]),
        ("self_attn.v_proj", vec![keys, d]),
        ("self_attn.o_proj", vec![d, d]),
        ("mlp.gate_proj", vec![mlp, d]),
        ("mlp.up_proj", vec![mlp, d]),
        ("mlp.down_proj", vec![d, mlp]),
    ];
    let named =
        |block, (name, shape): &(&str, Vec<usize>)| (format!("model.layers.{block}.{name}.weight"), shape.clone());
    write_tensors(
        dir,
        &config,
        (0..blocks).flat_map(|block| shapes.iter().map(move |shape| named(block, shape))).collect(),
    )
}

/// Writes a checkpoint of random tensors in f32: vectors as they come, since they multiply, matrices and biases small.
pub(crate) fn write_tensors(
    dir: &Path,
    config: &str,
    tensors: Vec<(String, Vec<usize>)>,
) -> Result<(), Box<dyn Error>> {
    std::fs::write(dir.join("config.json"), config)?;
    let mut data = BTreeMap::new();
    for (seed, (name, shape)) in tensors.into_iter().enumerate() {
        let scale = if shape.len() == 1 && !name.ends_with(".bias") { 1.0 } else { 0.03 };
        let values = noise(seed as u32, shape.iter().product());
        let bytes: Vec<u8> = values.iter().flat_map(|v| (v * scale).to_le_bytes()).collect();
        data.insert(name, (shape, bytes));
    }
    let mut views = Vec::new();
    for (name, (shape, bytes)) in &data {
        views.push((name, TensorView::new(FileDtype::F32, shape.clone(), bytes)?));
    }
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors"))?;
    Ok(())
}
