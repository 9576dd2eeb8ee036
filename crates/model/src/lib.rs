//! The model side of the swarm: frozen transformer blocks on a CPU or GPU, forward and backward,
//! and what a client computes itself.
//!
//! No network and no async here. Hidden states enter and leave as f32 host vectors whose shapes follow from a
//! [`petals_protocol::PassLayout`]. Blocks have no automatic differentiation: weights are frozen, so a backward is short
//! enough to be written by hand, and what it needs is an explicit [`Stash`] of known size.

mod checkpoint;
mod client_model;
mod config;
mod device;
mod engine;
#[cfg(test)]
mod fixture;
mod kv;
mod stack;

pub use checkpoint::{Checkpoint, CheckpointError, GgufVocabulary, SupplyError, TokenKind};
pub use client_model::{ClassOutput, ClientModel, HeadError, LossOutput, LossRules, TopTokens};
pub use config::{
    Activation, Alibi, AttentionDesign, BlockDesign, ConfigError, EmbeddingDesign, ExpertWeights, ExpertsDesign,
    HeadDesign, HeadNorms, LayerDesign, MlpDesign, MlpReads, ModelConfig, NormKind, NormPlaces, Projection,
    Projections, Quantisation, RopeScaling, RotaryDesign, SharedExpert, parse_json,
};
pub use device::{Device, DeviceError, DeviceKind, Dtype, FoundDevice, FoundDevices, KvDtype};
pub use engine::shapes::PAGE_TOKENS;
pub use engine::{DeviceFailure, KvMeter};
pub use kv::KvCache;
pub use stack::{
    BlockStack, CachedPrefix, CachedRows, Division, ForwardOutput, ForwardPass, InputGrads, Keep, Manner, OnePlace,
    OutputGrads, PassError, Pause, Place, SpanTables, Stash, StepSize,
};
