//! Checkpoints of quantised weights: headers, packed words, scales and indices may all be damaged.

use std::fs;

use petals_model::{Checkpoint, Device};
use serde_json::{Value, json};

use crate::files::{directory, dtype_for};
use crate::fuzz;

const INPUTS: u64 = 2_000;
const MEMORY: usize = 1 << 20;
/// Both extents of every matrix.
const SIDE: usize = 32;

/// A tensor of a module: what its name ends with, dtype, shape and bytes of a value.
type Part = (&'static str, &'static str, Vec<usize>, usize);

/// Methods with the tensors that they make of a matrix.
fn methods() -> [(Value, Vec<Part>); 4] {
    let words = |name, shape: [usize; 2]| (name, "I32", shape.to_vec(), 4);
    let floats = |name, shape: [usize; 2]| (name, "F32", shape.to_vec(), 4);
    let indices = ("g_idx", "I32", vec![SIDE], 4);
    [
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": true}),
            vec![words("qweight", [4, SIDE]), words("qzeros", [4, 4]), floats("scales", [4, SIDE]), indices],
        ),
        (
            json!({"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}),
            vec![words("qweight", [SIDE, 4]), words("qzeros", [4, 4]), floats("scales", [4, SIDE])],
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": false, "group_size": 8}}}}),
            vec![
                words("weight_packed", [SIDE, 4]),
                words("weight_zero_point", [4, 4]),
                floats("weight_scale", [SIDE, 4]),
            ],
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [16, 16]}),
            vec![("weight", "F8_E4M3", vec![SIDE, SIDE], 1), floats("weight_scale_inv", [2, 2])],
        ),
    ]
}

/// A safetensors file of one block.
fn block(parts: &[Part]) -> Vec<u8> {
    let (mut header, mut data) = (json!({}), Vec::new());
    let mut add = |name: String, (end, dtype, shape, size): &Part| {
        let start = data.len();
        let count = shape.iter().product::<usize>();
        match *end {
            // Which group each value belongs to, in another order than theirs.
            "g_idx" => (0..SIDE).for_each(|n| data.extend(((n % 4) as i32).to_le_bytes())),
            // A small number in any dtype.
            _ => data.extend(std::iter::repeat_n(0x3c_u8, count * size)),
        }
        header[format!("{name}.{end}")] = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
    };
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        add(format!("model.layers.0.{norm}"), &("weight", "F32", vec![SIDE], 4));
    }
    for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        parts.iter().for_each(|part| add(format!("model.layers.0.self_attn.{module}"), part));
    }
    for module in ["gate_proj", "up_proj", "down_proj"] {
        parts.iter().for_each(|part| add(format!("model.layers.0.mlp.{module}"), part));
    }
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn quantised_checkpoints() {
    let directory = directory();
    let file = directory.path().join("model.safetensors");
    for (method, parts) in methods() {
        let config = json!({
            "model_type": "llama", "vocab_size": 8, "hidden_size": SIDE, "intermediate_size": SIDE,
            "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64,
            "quantization_config": method,
        });
        fs::write(directory.path().join("config.json"), config.to_string()).expect("a configuration");
        let name = format!("checkpoints: {}", method["quant_method"]);
        let valid = [block(&parts)];
        let memory = MEMORY + valid[0].len();
        fuzz(&name, &valid, INPUTS, memory, |bytes| {
            fs::write(&file, bytes).expect("a written file");
            let Ok(checkpoint) = Checkpoint::open(directory.path()) else { return false };
            let span = "0..1".parse().expect("a span");
            let checked = checkpoint.check_span(span).is_ok();
            let loaded = checkpoint.load_span(span, &Device::cpu(), dtype_for(bytes)).is_ok();
            assert!(checked || !loaded, "a span that was refused is loaded");
            loaded
        });
    }
}
