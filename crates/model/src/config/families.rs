//! Families: from the keys of a configuration to a [`ModelConfig`], each with the names of its tensors.

use super::{
    Activation, AttentionDesign, BlockDesign, ConfigError, Fields, HeadNorms, MlpDesign, MlpReads, ModelConfig,
    NormKind, NormPlaces,
};

mod bloom;
mod falcon;
mod gemma;
mod glm4;
mod gpt_neox;
mod gpt_oss;
mod llama;
mod mixtures;
mod olmo2;
mod phi3;

/// A family of models, by the `model_type` of their configurations.
pub(super) struct Family {
    pub(super) model_type: &'static str,
    /// From a configuration to a model of this type.
    pub(super) read: fn(&Fields<'_>, &'static str) -> Result<ModelConfig, ConfigError>,
}

const FAMILIES: [&[Family]; 10] = [
    llama::FAMILIES,
    bloom::FAMILIES,
    falcon::FAMILIES,
    mixtures::FAMILIES,
    gemma::FAMILIES,
    phi3::FAMILIES,
    gpt_neox::FAMILIES,
    gpt_oss::FAMILIES,
    olmo2::FAMILIES,
    glm4::FAMILIES,
];

pub(super) fn all() -> impl Iterator<Item = &'static Family> {
    FAMILIES.into_iter().flatten()
}

/// The families by name, for whoever asked for another one.
pub(super) fn supported() -> String {
    let names: Vec<&str> = all().map(|family| family.model_type).collect();
    format!("supported are {}", names.join(", "))
}

/// The family of a `model_type`.
pub(super) fn of(model_type: &str) -> Result<&'static Family, ConfigError> {
    all().find(|family| family.model_type == model_type).ok_or_else(|| ConfigError::Unsupported {
        key: "model_type".to_owned(),
        got: format!("`{}`", model_type.escape_default()),
        supported: supported(),
        remedy: "use a model of one of these families".to_owned(),
    })
}

/// Llama's block with heads of `head_dim`: what the other ones are told apart from.
pub(super) fn plain_block(head_dim: usize, norm_eps: f32) -> BlockDesign {
    BlockDesign {
        norm: NormKind::RootMeanSquare,
        norm_eps,
        norms: NormPlaces::Before,
        mlp_reads: MlpReads::Residual,
        normed_residuals: false,
        attention: AttentionDesign {
            qkv_bias: false,
            output_bias: false,
            head_norms: HeadNorms::None,
            scale: (head_dim as f32).sqrt().recip(),
            soft_cap: None,
            alibi: None,
            sinks: false,
        },
        mlp: MlpDesign { activation: Activation::Silu, gated: true, bias: false },
        experts: None,
    }
}
