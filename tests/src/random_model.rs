//! Random checkpoints of any size, for benchmarks.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

/// Extents of a Llama.
#[derive(Debug, Clone, Copy)]
pub struct RandomModel {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Blocks.
    pub blocks: usize,
    /// Attention heads; as many for keys and values.
    pub heads: usize,
    /// Tokens.
    pub vocab: usize,
}

impl RandomModel {
    /// The model that the reference was measured with: 154 M parameters in blocks, 66 M in embeddings and head.
    pub const SMALL: Self = Self { hidden: 1024, intermediate: 2816, blocks: 12, heads: 16, vocab: 32_000 };
    /// A model between the other two: 25 M parameters in blocks.
    pub const MEDIUM: Self = Self { hidden: 512, intermediate: 1408, blocks: 8, heads: 8, vocab: 1024 };
    /// A model whose computation costs nothing, to measure everything else.
    pub const TINY: Self = Self { hidden: 64, intermediate: 176, blocks: 4, heads: 4, vocab: 512 };

    /// Writes `config.json` and `model.safetensors` (f32) into `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory)?;
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads, "num_key_value_heads": self.heads, "vocab_size": self.vocab,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.02,
            "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        });
        std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        let tensors = self.tensors();
        let mut header = serde_json::Map::new();
        let mut offset = 0;
        for (name, shape) in &tensors {
            let end = offset + 4 * shape.iter().product::<usize>();
            header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}));
            offset = end;
        }
        let mut header = serde_json::to_vec(&Value::Object(header))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = std::io::BufWriter::new(std::fs::File::create(directory.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut random = Random(1);
        for (_, shape) in &tensors {
            let norm = shape.len() == 1;
            for _ in 0..shape.iter().product::<usize>() {
                let value = if norm { 1.0 } else { random.next() };
                file.write_all(&value.to_le_bytes())?;
            }
        }
        Ok(file.flush()?)
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden, self.intermediate);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, d])];
        for block in 0..self.blocks {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{block}.{name}.weight"), shape.to_vec()));
            };
            ["q_proj", "k_proj", "v_proj", "o_proj"].iter().for_each(|p| add(&format!("self_attn.{p}"), &[d, d]));
            add("mlp.gate_proj", &[f, d]);
            add("mlp.up_proj", &[f, d]);
            add("mlp.down_proj", &[d, f]);
            add("input_layernorm", &[d]);
            add("post_attention_layernorm", &[d]);
        }
        tensors.push(("model.norm.weight".into(), vec![d]));
        tensors.push(("lm_head.weight".into(), vec![self.vocab, d]));
        tensors
    }
}

/// A linear congruential generator: values of the spread that checkpoints start with, the same everywhere.
struct Random(u32);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((self.0 >> 8) as f32 / 16_777_216.0 - 0.5) * 0.07
    }
}
