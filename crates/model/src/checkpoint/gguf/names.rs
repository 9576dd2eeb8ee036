//! From llama.cpp's names of tensors (`gguf-py/gguf/constants.py`) to those of Hugging Face.
//!
//! What a tensor is for is in llama.cpp's name; what a family calls such a tensor is in its [`Names`]. So there is no table for each
//! architecture, only what the conversion did to tensors of some of them.

use std::ops::Range;

use crate::checkpoint::layout::{Layout, RowOrder};
use crate::config::{AttentionDesign, GateUp, HeadNorms, ModelConfig, Names, NormKind, Qkv};

/// A tensor of Hugging Face's in one of the file's.
#[derive(Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) name: String,
    /// Which matrix of a stack.
    pub(super) matrix: Option<usize>,
    /// Which of its rows.
    pub(super) rows: Option<Range<usize>>,
    pub(super) layout: Layout,
}

/// The mark of a tensor that is a side of one of Hugging Face's, behind its name, with the side's number.
pub(super) const SIDE: char = '#';

/// Finds what tensors are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finder<'a> {
    pub(super) config: &'a ModelConfig,
    /// Whether llama.cpp's rotary embedding turns neighbours where Hugging Face's turns halves.
    pub(super) turns: bool,
}

impl Finder<'_> {
    /// What a tensor of this shape is of the model's; nothing if it is none of it.
    pub(super) fn find(&self, name: &str, shape: &[usize]) -> Vec<Placed> {
        let Some((stem, end)) = name.rsplit_once('.').filter(|(_, end)| ["weight", "bias"].contains(end)) else {
            return Vec::new();
        };
        let names = self.config.names;
        let Some(rest) = stem.strip_prefix("blk.") else {
            let plain = |name: String, norm| vec![self.plain(format!("{name}.{end}"), norm)];
            return match stem {
                "token_embd" if end == "weight" => plain(names.embeddings(), false),
                "output" => plain(names.head().to_owned(), false),
                "output_norm" => plain(names.final_norm(), true),
                "token_embd_norm" if !names.embedding_norm.is_empty() => plain(names.embedding_norm(), true),
                _ => Vec::new(),
            };
        };
        let Some((number, role)) = rest.split_once('.') else { return Vec::new() };
        let block = number.parse::<u32>().ok().filter(|block| block.to_string() == number);
        match block.filter(|block| (*block as usize) < self.config.num_hidden_layers) {
            Some(block) if self.computes(role, end == "bias") => self.of_block(block, role, end, shape),
            _ => Vec::new(),
        }
    }

    /// Whether blocks compute with a tensor of this role, or with its bias. What they do not must not be passed over: it is of another model.
    fn computes(&self, role: &str, bias: bool) -> bool {
        let block = &self.config.block;
        let AttentionDesign { qkv_bias, output_bias, head_norms, sinks, .. } = block.attention;
        match role {
            "attn_q" | "attn_k" | "attn_v" | "attn_qkv" => !bias || qkv_bias,
            "attn_output" => !bias || output_bias,
            "attn_q_norm" | "attn_k_norm" => !bias && head_norms != HeadNorms::None,
            "attn_sinks" => sinks,
            "ffn_gate" | "ffn_up" | "ffn_down" => !bias || block.mlp.bias,
            _ if role.ends_with("_shexp") => !bias && block.experts.is_some_and(|experts| experts.shared.is_some()),
            _ if role.ends_with("norm") || role == "attn_norm_2" => !bias || block.norm == NormKind::Layer,
            _ => block.experts.is_some_and(|experts| !bias || experts.bias),
        }
    }

    fn of_block(&self, block: u32, role: &str, end: &str, shape: &[usize]) -> Vec<Placed> {
        let names = self.config.names;
        let named = |name: &str| format!("{}.{end}", names.of_block(block, name));
        if let Some((name, norm)) = whole(names, role).filter(|(name, _)| !name.is_empty()) {
            return vec![self.plain(named(name), norm)];
        }
        if role == "attn_sinks" {
            return vec![self.plain(names.of_block(block, names.sinks), false)];
        }
        let side = |role: &str| ["ffn_gate", "ffn_up", "ffn_down"].iter().position(|side| *side == role);
        if let Some(number) = side(role) {
            let names = self.side(names.mlp, number);
            return names.into_iter().map(|name| self.plain(named(&name), false)).collect();
        }
        if let Some(number) = role.strip_suffix("_shexp").and_then(side) {
            let names = self.side(names.shared_expert, number);
            return names.into_iter().map(|name| self.plain(named(&name), false)).collect();
        }
        if let Some(number) = role.strip_suffix("_exps").and_then(side) {
            return self.experts(block, end, shape, number);
        }
        // Old files have a tensor for each expert.
        if let Some((sides, expert)) = role.rsplit_once('.')
            && let Some(name) =
                side(sides).and_then(|number| self.side(&format!("{}.{expert}.", names.experts), number))
        {
            return vec![self.plain(named(&name), false)];
        }
        self.attention(block, role, end)
    }

    /// A tensor that is whole.
    fn plain(&self, name: String, norm: bool) -> Placed {
        let plus_one = norm && self.config.block.norm == NormKind::RootMeanSquarePlusOne && name.ends_with(".weight");
        let layout = Layout { plus_one, ..Layout::default() };
        Placed { name, matrix: None, rows: None, layout }
    }

    /// Gate, up or down of an MLP below a name.
    fn side(&self, below: &str, number: usize) -> Option<String> {
        let names = self.config.names;
        let name = match (names.gate_up, number) {
            (_, 2) => names.down,
            (GateUp::Separate(sides), number) => sides[number],
            // Gate and up are one tensor, which llama.cpp calls the latter.
            (GateUp::Stacked(both), 1) => both,
            _ => "",
        };
        (!name.is_empty()).then(|| format!("{below}{name}"))
    }

    /// A side of all experts.
    fn experts(&self, block: u32, end: &str, shape: &[usize], side: usize) -> Vec<Placed> {
        let names = self.config.names;
        let count = self.config.block.experts.map_or(0, |experts| experts.count);
        if shape.first() != Some(&count) {
            return Vec::new();
        }
        if let GateUp::AllExperts(gate_up) = names.gate_up {
            let (name, side) = if side == 2 { (names.down, 0) } else { (gate_up, side) };
            let behind = if end == "bias" { "_bias" } else { "" };
            let name = names.of_block(block, &format!("{}.{name}{behind}{SIDE}{side}", names.experts));
            return vec![self.plain(name, false)];
        }
        let placed = |expert| {
            let name = self.side(&format!("{}.{expert}.", names.experts), side)?;
            let name = format!("{}.{end}", names.of_block(block, &name));
            Some(Placed { name, matrix: Some(expert), rows: None, layout: Layout::default() })
        };
        (0..count).filter_map(placed).collect()
    }

    /// Queries, keys and values.
    fn attention(&self, block: u32, role: &str, end: &str) -> Vec<Placed> {
        let config = self.config;
        let placed = |name: &str, rows, order| Placed {
            name: format!("{}.{end}", config.names.of_block(block, name)),
            matrix: None,
            rows,
            layout: Layout { order, plus_one: false },
        };
        let dim = config.head_dim;
        // Values are not turned.
        let order = |number: usize| if self.turns && number < 2 { RowOrder::Turns { dim } } else { RowOrder::Same };
        let number = ["attn_q", "attn_k", "attn_v"].iter().position(|name| *name == role);
        match (config.names.qkv, number) {
            (Qkv::Separate(names), Some(number)) => vec![placed(names[number], None, order(number))],
            (Qkv::Separate(names), None) if role == "attn_qkv" => {
                let (queries, keys) = (config.query_width(), config.key_width());
                let ends = [0, queries, queries + keys, queries + 2 * keys];
                (0..3).map(|n| placed(names[n], Some(ends[n]..ends[n + 1]), order(n))).collect()
            }
            (Qkv::Stacked(name), None) if role == "attn_qkv" => vec![placed(name, None, RowOrder::Same)],
            (Qkv::ByKeyHead(name), None) if role == "attn_qkv" => {
                let key_heads = config.num_key_value_heads;
                let group = config.num_attention_heads / key_heads;
                vec![placed(name, None, RowOrder::Stacked { key_heads, group, dim })]
            }
            _ => Vec::new(),
        }
    }
}

/// The name of a block's tensor that is whole, and whether it is a norm's.
fn whole(names: &Names, role: &str) -> Option<(&'static str, bool)> {
    // Of Falcon's two norms llama.cpp has that of the MLP first.
    let two_norms = names.attention_norm == "ln_attn";
    Some(match role {
        "attn_norm" if two_norms => (names.mlp_norm, true),
        "attn_norm" => (names.attention_norm, true),
        "attn_norm_2" if two_norms => (names.attention_norm, true),
        "ffn_norm" => (names.mlp_norm, true),
        // The one before the MLP has this name in gpt-oss alone.
        "post_attention_norm" if matches!(names.gate_up, GateUp::AllExperts(_)) => (names.mlp_norm, true),
        "post_attention_norm" => (names.attention_out_norm, true),
        "post_ffw_norm" => (names.mlp_out_norm, true),
        "attn_q_norm" => (names.query_norm, true),
        "attn_k_norm" => (names.key_norm, true),
        "attn_output" => (names.output, false),
        "ffn_gate_inp" => (names.router, false),
        "ffn_gate_inp_shexp" => (names.shared_gate, false),
        _ => return None,
    })
}
