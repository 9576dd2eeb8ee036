//! Random blocks of families, in the sizes that `scripts/bench-block` compares with transformers' own.

use std::error::Error;

use petals_model::{BlockStack, Checkpoint, Device, Dtype};
use petals_protocol::Span;

use crate::random::write_tensors;

/// Which family's blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    Llama,
    /// ALiBi, layer norms, biases, and an MLP without a gate.
    Bloom,
    /// As 7B: attention and MLP side by side behind one norm, one key head.
    Falcon,
    /// Llama's with so many experts in place of the MLP, of which each row goes through some.
    Mixtral {
        experts: usize,
        used: usize,
    },
}

/// Some blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) family: Family,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    /// Width of the MLP, or of each expert.
    pub(crate) mlp: usize,
    pub(crate) blocks: usize,
}

/// Mixtral's block, small: 8 experts, of which each row goes through 2.
pub(crate) const MIXTRAL: Shape = Shape {
    family: Family::Mixtral { experts: 8, used: 2 },
    hidden: 1024,
    heads: 16,
    key_heads: 8,
    mlp: 1792,
    blocks: 1,
};

impl Shape {
    /// One block of the family of that name.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let dense = |family, key_heads, mlp| Self { family, key_heads, mlp, ..MIXTRAL };
        match name {
            "llama" => Ok(dense(Family::Llama, 16, 2816)),
            "bloom" => Ok(dense(Family::Bloom, 16, 4096)),
            "falcon" => Ok(dense(Family::Falcon, 1, 4096)),
            "mixtral" => Ok(MIXTRAL),
            _ => Err(format!("--family {name}: use llama, bloom, falcon or mixtral")),
        }
    }

    /// Dense blocks of Llama with the same attention and an MLP of this width.
    pub(crate) fn dense(self, mlp: usize) -> Self {
        Self { family: Family::Llama, mlp, ..self }
    }

    /// Makes the blocks, by way of a checkpoint that is gone afterwards.
    pub(crate) fn load(self, device: &Device, dtype: Dtype) -> Result<BlockStack, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        let tensors = (0..self.blocks).flat_map(|block| self.tensors(block)).collect();
        write_tensors(dir.path(), &self.config(), tensors)?;
        let span = Span::new(0, u32::try_from(self.blocks)?)?;
        Ok(Checkpoint::open(dir.path())?.load_span(span, device, dtype)?)
    }

    fn config(self) -> String {
        let Self { family, hidden, heads, key_heads, mlp, blocks } = self;
        let own = match family {
            Family::Llama => r#""model_type": "llama""#.to_owned(),
            Family::Bloom => r#""model_type": "bloom""#.to_owned(),
            Family::Falcon => format!(r#""model_type": "falcon", "ffn_hidden_size": {mlp}"#),
            Family::Mixtral { experts, used } => format!(
                r#""model_type": "mixtral", "num_local_experts": {experts}, "num_experts_per_tok": {used}, "sliding_window": null"#
            ),
        };
        format!(
            r#"{{{own}, "vocab_size": 8, "hidden_size": {hidden}, "intermediate_size": {mlp}, "num_hidden_layers": {blocks},
            "num_attention_heads": {heads}, "num_key_value_heads": {key_heads}, "max_position_embeddings": 4096}}"#
        )
    }

    /// Names and shapes of a block's tensors, as files have them.
    fn tensors(self, block: usize) -> Vec<(String, Vec<usize>)> {
        let Self { family, hidden: d, heads, key_heads, mlp, .. } = self;
        let keys = key_heads * (d / heads);
        let mut tensors = Vec::new();
        let mut add = |name: &str, shape: &[usize], bias: bool| {
            let base = match family {
                Family::Bloom | Family::Falcon => "transformer.h",
                Family::Llama | Family::Mixtral { .. } => "model.layers",
            };
            tensors.push((format!("{base}.{block}.{name}.weight"), shape.to_vec()));
            if bias {
                tensors.push((format!("{base}.{block}.{name}.bias"), vec![shape[0]]));
            }
        };
        add("input_layernorm", &[d], matches!(family, Family::Bloom | Family::Falcon));
        match family {
            Family::Bloom | Family::Falcon => {
                let bias = matches!(family, Family::Bloom);
                if bias {
                    add("post_attention_layernorm", &[d], true);
                }
                add("self_attention.query_key_value", &[d + 2 * keys, d], bias);
                add("self_attention.dense", &[d, d], bias);
                add("mlp.dense_h_to_4h", &[mlp, d], bias);
                add("mlp.dense_4h_to_h", &[d, mlp], bias);
            }
            Family::Llama | Family::Mixtral { .. } => {
                add("post_attention_layernorm", &[d], false);
                let attention = [("q_proj", [d, d]), ("k_proj", [keys, d]), ("v_proj", [keys, d]), ("o_proj", [d, d])];
                for (name, shape) in attention {
                    add(&format!("self_attn.{name}"), &shape, false);
                }
            }
        }
        match family {
            Family::Llama => {
                for (name, shape) in [("gate_proj", [mlp, d]), ("up_proj", [mlp, d]), ("down_proj", [d, mlp])] {
                    add(&format!("mlp.{name}"), &shape, false);
                }
            }
            Family::Mixtral { experts, .. } => {
                add("block_sparse_moe.gate", &[experts, d], false);
                for expert in 0..experts {
                    for (name, shape) in [("w1", [mlp, d]), ("w2", [d, mlp]), ("w3", [mlp, d])] {
                        add(&format!("block_sparse_moe.experts.{expert}.{name}"), &shape, false);
                    }
                }
            }
            Family::Bloom | Family::Falcon => {}
        }
        tensors
    }
}
