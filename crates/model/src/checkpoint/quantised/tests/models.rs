//! Whole models: what a quantised checkpoint computes is what one of floats computes that has the widened values.

use petals_protocol::{Injection, PassLayout, Span};

use super::*;
use crate::config::ModelConfig;
use crate::device::{Device, Dtype};
use crate::fixture::noise;
use crate::stack::{ForwardPass, Keep};

/// Width of the hidden states, and rows of a text.
const D: usize = 32;
const ROWS: usize = 5;

fn family(model_type: &str) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "pad_token_id": 0
    });
    let more = match model_type {
        "mixtral" => json!({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": null}),
        "qwen3_moe" => json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
        "gpt_oss" => json!({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
        _ => json!({}),
    };
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn methods() -> Vec<Value> {
    let compressed = |format: &str, weights: Value| {
        json!({"quant_method": "compressed-tensors", "format": format,
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
    };
    vec![
        json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": true}),
        json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}),
        json!({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}),
        compressed("pack-quantized", json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8})),
        compressed("int-quantized", json!({"num_bits": 8, "type": "int", "strategy": "channel"})),
        compressed("float-quantized", json!({"num_bits": 8, "type": "float", "strategy": "tensor"})),
        json!({"quant_method": "fp8", "weight_block_size": [16, 16]}),
    ]
}

/// Makes tensors of noise.
struct Maker {
    seed: u64,
    tensors: Bytes,
}

impl Maker {
    fn floats(&mut self, name: String, shape: &[usize], scale: f32, shift: f32) {
        self.seed += 1;
        let values = noise(self.seed, shape.iter().product());
        let bytes = values.iter().flat_map(|v| (v * scale + shift).to_le_bytes()).collect();
        self.tensors.insert(name, ("F32".to_owned(), shape.to_vec(), bytes));
    }

    /// Bytes that look random, of which `kept` bits are kept.
    fn codes(&mut self, name: String, dtype: &str, shape: &[usize], kept: u8) {
        self.seed += 1;
        let size = if dtype == "I32" { 4 } else { 1 };
        let values = noise(self.seed, shape.iter().product::<usize>() * size);
        let bytes = values.iter().map(|v| ((v + 1.0) * 128.0) as u8 & kept).collect();
        self.tensors.insert(name, (dtype.to_owned(), shape.to_vec(), bytes));
    }

    /// Random tensors of a module in the layout of a method.
    fn module(&mut self, name: &str, [rows, values]: [usize; 2], method: &Value) {
        let named = |end: &str| format!("{name}.{end}");
        let text = |key: &str| method[key].as_str().unwrap_or_default();
        match (text("quant_method"), text("format")) {
            ("gptq", _) => {
                let bits = method["bits"].as_u64().unwrap() as usize;
                let size = usize::try_from(method["group_size"].as_i64().unwrap()).unwrap_or(values);
                self.codes(named("qweight"), "I32", &[values * bits / 32, rows], 0xff);
                self.codes(named("qzeros"), "I32", &[values / size, rows * bits / 32], 0x77);
                self.floats(named("scales"), &[values / size, rows], 0.01, 0.02);
                let indices = (0..values).flat_map(|n| ((n * 5 % values / size) as i32).to_le_bytes()).collect();
                self.tensors.insert(named("g_idx"), ("I32".to_owned(), vec![values], indices));
            }
            ("awq", _) => {
                self.codes(named("qweight"), "I32", &[values, rows / 8], 0xff);
                self.codes(named("qzeros"), "I32", &[values / 16, rows / 8], 0xff);
                self.floats(named("scales"), &[values / 16, rows], 0.01, 0.02);
            }
            (_, "pack-quantized") => {
                self.codes(named("weight_packed"), "I32", &[rows, values / 8], 0xff);
                self.codes(named("weight_zero_point"), "I32", &[rows / 8, values / 8], 0xff);
                self.floats(named("weight_scale"), &[rows, values / 8], 0.01, 0.02);
            }
            (_, "int-quantized") => {
                self.codes(named("weight"), "I8", &[rows, values], 0xff);
                self.floats(named("weight_scale"), &[rows, 1], 0.001, 0.002);
            }
            (_, "float-quantized") => {
                self.codes(named("weight"), "F8_E4M3", &[rows, values], 0xb7);
                self.floats(named("weight_scale"), &[1], 0.01, 0.2);
            }
            _ => {
                self.codes(named("weight"), "F8_E4M3", &[rows, values], 0xb7);
                self.floats(named("weight_scale_inv"), &[rows.div_ceil(16), values.div_ceil(16)], 0.1, 0.2);
            }
        }
    }
}

/// A quantised model, and one of floats with its values.
fn pair(model_type: &str, method: &Value) -> [fixture::Dir; 2] {
    let mut config = family(model_type);
    let parsed = ModelConfig::from_json(&config.to_string()).unwrap();
    let mut maker = Maker { seed: 0, tensors: Bytes::new() };
    let mut modules = Vec::new();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        maker.floats(name.to_owned(), &[40, D], 0.5, 0.0);
    }
    maker.floats("model.norm.weight".to_owned(), &[D], 0.5, 1.0);
    if model_type == "llama" {
        maker.tensors.remove("lm_head.weight");
        maker.module("lm_head", [40, D], method);
        modules.push(("lm_head".to_owned(), [40, D]));
    }
    for block in 0..2 {
        for (name, width) in parsed.vectors_of(block) {
            maker.floats(name, &[width], 0.5, 1.0);
        }
        for (number, (part, bias)) in parsed.tensors_of(block).into_iter().enumerate() {
            let ([rows, values], name) = (part.shape, part.tensor.clone());
            if bias {
                let (name, shape) = part.bias();
                maker.floats(name, &shape, 0.1, 0.0);
            }
            match part.expert {
                Some((_, count)) => {
                    maker.codes(format!("{name}_blocks"), "U8", &[count, rows, values / 32, 16], 0xff);
                    maker.codes(format!("{name}_scales"), "U8", &[count, rows, values / 32], 0x07);
                    // Powers of two around 2^-5.
                    let scales = &mut maker.tensors.get_mut(&format!("{name}_scales")).unwrap().2;
                    scales.iter_mut().for_each(|scale| *scale += 118);
                }
                // Some are left out, as routers always are.
                None if rows < 8 || number == 2 + block as usize || method["quant_method"] == "mxfp4" => {
                    maker.floats(format!("{name}.weight"), &[rows, values], 0.3, 0.0);
                }
                None => {
                    maker.module(&name, part.shape, method);
                    modules.push((name, part.shape));
                }
            }
        }
    }
    config["quantization_config"] = method.clone();
    let quantised = fixture::raw_model(&config, &maker.tensors);
    config["quantization_config"] = json!(null);
    let widened = widened(&Checkpoint::open(quantised.path()).unwrap(), maker.tensors, &modules);
    let floats = fixture::raw_model(&config, &widened);
    [quantised, floats]
}

/// The tensors of a checkpoint with those modules widened to floats.
fn widened(checkpoint: &Checkpoint, mut tensors: Bytes, modules: &[(String, [usize; 2])]) -> Bytes {
    let packed = |name: &str| {
        let of = |(module, _): &(String, [usize; 2])| {
            name.strip_prefix(module.as_str()).is_some_and(|end| end.starts_with('.') && end != ".bias")
        };
        modules.iter().any(of) || name.ends_with("_blocks") || name.ends_with("_scales")
    };
    tensors.retain(|name, _| !packed(name));
    let mut add = |name: String, shape: Vec<usize>, values: &[f32]| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert(name, ("F32".to_owned(), shape, bytes));
    };
    for (name, shape @ [rows, values]) in modules {
        let (matrix, mut all) = (checkpoint.matrix(name, *shape).unwrap(), vec![0.0; rows * values]);
        all.chunks_exact_mut(*values).enumerate().for_each(|(row, values)| matrix.decode_row(row, values));
        add(format!("{name}.weight"), shape.to_vec(), &all);
    }
    let config = checkpoint.config();
    for block in 0..2 {
        for (mut part, _) in config.tensors_of(block) {
            let ([rows, values], Some((_, count))) = (part.shape, part.expert) else { continue };
            let (mut all, mut row) = (vec![0.0; count * values * rows], vec![0.0; values]);
            for expert in 0..count {
                part.expert = Some((expert, count));
                let matrix = checkpoint.matrix_of(&part).unwrap();
                for number in 0..rows {
                    matrix.decode_row(number, &mut row);
                    row.iter().enumerate().for_each(|(at, v)| all[(expert * values + at) * rows + number] = *v);
                }
            }
            add(part.tensor, vec![count, values, rows], &all);
        }
    }
    tensors
}

/// What the blocks make of a text, and the head of that.
fn outputs(checkpoint: &Checkpoint) -> [Vec<f32>; 2] {
    let span = Span::new(0, 2).unwrap();
    checkpoint.check_span(span).unwrap();
    let stack = checkpoint.load_span(span, &Device::cpu(), Dtype::F32).unwrap();
    let layout = PassLayout {
        span,
        lengths: vec![ROWS as u32],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let pass = ForwardPass { layout: &layout, text: noise(900, ROWS * D), prefix: None, tables: None };
    let text = stack.forward(pass, Keep::Nothing).unwrap().text;
    let logits = checkpoint.load_client(Dtype::F32).unwrap().lm_logits(&text).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    [text, logits]
}

fn compare(model_type: &str, method: &Value) {
    let dirs = pair(model_type, method);
    let [quantised, floats] = dirs.each_ref().map(|dir| Checkpoint::open(dir.path()).unwrap());
    assert!(outputs(&quantised) == outputs(&floats), "{model_type}, {method}");
    let [quantised, floats] = [quantised, floats].map(Checkpoint::with_experts_in_files);
    assert!(outputs(&quantised) == outputs(&floats), "{model_type}, {method}, experts in files");
}

#[test]
fn quantised_models_compute_what_their_widened_values_do() {
    // Separate projections, fused ones, and experts.
    for model_type in ["llama", "phi3", "mixtral", "qwen3_moe"] {
        methods().iter().for_each(|method| compare(model_type, method));
    }
}

#[test]
fn experts_in_mxfp4_compute_what_their_widened_values_do() {
    compare("gpt_oss", &json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}));
}

#[test]
fn a_fingerprint_says_nothing_of_the_head_and_tells_layouts_apart() {
    let print = |dir: &fixture::Dir| Checkpoint::open(dir.path()).unwrap().fingerprint();
    let mut prints = Vec::new();
    for method in methods() {
        let [quantised, floats] = pair("llama", &method);
        prints.extend([print(&quantised), print(&floats)]);
        let mut tensors = fixture::raw_tensors(&quantised);
        tensors.retain(|name, _| !name.starts_with("lm_head."));
        let mut config = family("llama");
        config["quantization_config"] = method;
        assert_eq!(print(&fixture::raw_model(&config, &tensors)), *prints.iter().nth_back(1).unwrap());
    }
    prints.sort_by_key(|print| print.0);
    prints.dedup();
    // Of floats all of them are the same. GPTQ of four and of eight bits differ in values alone, as do compressed-tensors' bytes of both kinds.
    assert_eq!(prints.len(), 6);
}

#[test]
fn spans_are_checked_by_all_tensors_of_quantised_modules() {
    for method in methods() {
        let [dir, _] = pair("llama", &method);
        let tensors = fixture::raw_tensors(&dir);
        let mut config = family("llama");
        config["quantization_config"] = method;
        let optional = ["g_idx", "weight_zero_point"];
        let required = |name: &&String| !optional.iter().any(|end| name.ends_with(end));
        for name in tensors.keys().filter(|name| name.starts_with("model.layers.1.")).filter(required) {
            let mut tensors = tensors.clone();
            tensors.remove(name);
            let dir = fixture::raw_model(&config, &tensors);
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let span = Span::new(1, 2).unwrap();
            let error = checkpoint.check_span(span).unwrap_err().to_string();
            let loaded = checkpoint.load_span(span, &Device::cpu(), Dtype::F32).unwrap_err().to_string();
            assert_eq!(error, loaded);
            let module = name.rsplit_once('.').map_or(name.as_str(), |(module, _)| module);
            assert!(error.contains(module), "{name}: {error}");
            assert!(checkpoint.check_span(Span::new(0, 1).unwrap()).is_ok(), "{name}");
        }
    }
}
