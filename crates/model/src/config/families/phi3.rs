//! Phi-3 and Phi-4 (`modeling_phi3.py`): Llama's block with fused tensors, and part of each head rotated in Phi-4-mini.

use super::Family;
use super::llama::{Llama, NAMES, WITHOUT_BIASES, read};
use crate::config::names::{GateUp, Names, Qkv};
use crate::config::window::Windows;

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "phi3", read: |fields, name| read(fields, name, &PHI3) }];

const FUSED: Names =
    Names { qkv: Qkv::Stacked("self_attn.qkv_proj"), gate_up: GateUp::Stacked("gate_up_proj"), ..NAMES };

const PHI3: Llama = Llama {
    max_positions: 4096,
    windows: Windows::All(None),
    eps: 1e-5,
    rotated: Some(1.0),
    bos_token_id: Some(1),
    eos_token_id: Some(32_000),
    names: &FUSED,
    ..WITHOUT_BIASES
};
