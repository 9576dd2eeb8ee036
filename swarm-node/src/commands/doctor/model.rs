//! What a model needs, and how much of it this machine can serve.

use petals_model::{Checkpoint, Dtype, KvDtype, LayerDesign, ModelConfig, PAGE_TOKENS, Place};
use petals_protocol::Span;

use crate::commands::events::{BlockBytes, BlockKind, BlocksThatFit, Check, ModelNeeds, size};
use crate::machine::division;
use crate::machine::memory::Free;

/// The version that families were compared with (`tests/oracle/requirements.txt`).
const REFERENCE: &str = "transformers 4.57.1";

/// Families, and whose logits and gradients theirs were compared with (`tests/goldens`).
const CHECKED: &[(&str, &str)] = &[
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("bloom", "BloomForCausalLM"),
    ("falcon", "FalconForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("qwen2_moe", "Qwen2MoeForCausalLM"),
    ("qwen3_moe", "Qwen3MoeForCausalLM"),
    ("gpt_oss", "GptOssForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("gpt_neox", "GPTNeoXForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("glm", "GlmForCausalLM"),
    ("glm4", "Glm4ForCausalLM"),
];

/// What a family was compared with.
fn checked_against(model_type: &str) -> Option<String> {
    let (_, class) = CHECKED.iter().find(|(family, _)| *family == model_type)?;
    Some(format!("{class} of {REFERENCE}"))
}

/// What the model needs, given what fits here.
pub(super) fn needs(config: &ModelConfig, fit: BlocksThatFit, kv_dtype: KvDtype) -> ModelNeeds {
    ModelNeeds {
        family: config.model_type.clone(),
        checked_against: checked_against(&config.model_type),
        max_positions: config.max_position_embeddings,
        kv_dtype: kv_dtype.to_string(),
        kinds: kinds(config, kv_dtype),
        fit,
    }
}

/// The kinds of a model's blocks, in the order in which they first come.
fn kinds(config: &ModelConfig, kv_dtype: KvDtype) -> Vec<BlockKind> {
    // Of each kind the first block, and how many there are.
    let mut found: Vec<(u32, LayerDesign, usize)> = Vec::new();
    for (number, &layer) in (0..).zip(&config.layers) {
        let alike = |other: &LayerDesign| (other.window, other.experts) == (layer.window, layer.experts);
        match found.iter_mut().find(|(_, other, _)| alike(other)) {
            Some((_, _, count)) => *count += 1,
            None => found.push((number, layer, 1)),
        }
    }
    found.into_iter().filter_map(|(first, layer, blocks)| kind(config, kv_dtype, (first, layer, blocks))).collect()
}

fn kind(
    config: &ModelConfig,
    kv_dtype: KvDtype,
    (first, layer, blocks): (u32, LayerDesign, usize),
) -> Option<BlockKind> {
    let experts = config.block.experts.filter(|_| layer.experts);
    let weights = Dtype::KEPT.map(|dtype| BlockBytes {
        dtype: dtype.to_string(),
        bytes: config.block_bytes(layer, dtype),
        active_bytes: config.active_block_bytes(layer, dtype),
    });
    let (page, positions) = (config.kv_page_bytes(1, kv_dtype), config.max_position_embeddings);
    Some(BlockKind {
        blocks,
        experts: experts.map(|experts| experts.count),
        experts_used: experts.map(|experts| experts.used),
        window: layer.window,
        weights: weights.into(),
        cache_token_bytes: page / PAGE_TOKENS as u64,
        cache_bytes: config.kv_bytes(Span::new(first, first + 1).ok()?, positions as u64, kv_dtype),
        cache_bytes_without_window: (positions.div_ceil(PAGE_TOKENS) as u64).saturating_mul(page),
    })
}

/// What keys and values are kept in, by the place that keeps them in the fewest bits.
pub(super) fn kv_dtype(places: &[Place]) -> Option<KvDtype> {
    places.iter().map(|place| place.kv_dtype).max_by_key(|dtype| KvDtype::KEPT.iter().position(|kept| kept == dtype))
}

/// What `serve` would make of this machine's memory, without `--blocks` and other limits.
pub(super) fn fit(checkpoint: &Checkpoint, places: &[Place], free: &Free) -> BlocksThatFit {
    let (all, config) = (checkpoint.blocks(), checkpoint.config());
    let fitting = |places: &[Place]| division::fitting(checkpoint, places, free).min(all.len());
    let blocks = fitting(places);
    // The first blocks stand for any: all are about as large.
    let first = Span::new(all.start(), all.start() + blocks.max(1) as u32).unwrap_or(all);
    let division = division::divide(checkpoint, first, places, free, |_| None);
    let parts = division.as_ref().map_or(&[][..], |division| division.parts());
    let weights = division.as_ref().map_or_else(Vec::new, |division| division::weights(checkpoint, division));
    let bytes = weights.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    let budgets = free.divide(if blocks > 0 { &weights } else { &[] });
    let page = |(span, place): &(Span, Place)| {
        (place.device.to_string(), config.kv_page_bytes(span.len().min(blocks), place.kv_dtype))
    };
    let dtype = division.as_ref().map_or(Dtype::F32, petals_model::Division::dtype);
    let less = |dtype: Dtype| {
        let narrower = places.iter().map(|place| Place { dtype, ..place.clone() }).collect::<Vec<_>>();
        (dtype.to_string(), fitting(&narrower) as u64)
    };
    BlocksThatFit {
        device: division::names(places.iter().map(|place| &place.device)),
        dtype: dtype.to_string(),
        of: all.len() as u64,
        blocks: blocks as u64,
        blocks_in_less: narrower(dtype).map(less).collect(),
        experts_may_stay_in_files: config.block.experts.is_some()
            && places.iter().all(|place| place.device.reads_in_place()),
        block_bytes: bytes / first.len() as u64,
        weight_room: free.for_weights(),
        kv_bytes: budgets.kv,
        kv_tokens: tokens(budgets.kv, budgets.rooms.of_all(&parts.iter().map(page).collect::<Vec<_>>())),
        stash_bytes: budgets.stash,
        pass_bytes: budgets.pass,
        request_bytes: budgets.requests,
    }
}

/// Dtypes of fewer bits, the widest first. Of the two of sixteen the one that most devices have.
fn narrower(dtype: Dtype) -> impl Iterator<Item = Dtype> {
    let less = move |other: &Dtype| *other != Dtype::F16 && other.bytes(1 << 10) < dtype.bytes(1 << 10);
    Dtype::KEPT.into_iter().filter(less)
}

/// Tokens whose keys and values fit into `bytes`, at `page` bytes for [`PAGE_TOKENS`] of them. No blocks keep nothing.
fn tokens(bytes: u64, page: u64) -> u64 {
    bytes.checked_div(page).map_or(0, |pages| pages.saturating_mul(PAGE_TOKENS as u64))
}

/// What there is to say of the machine's memory.
pub(super) fn memory(needs: &ModelNeeds) -> Check {
    const NAME: &str = "memory";
    let ModelNeeds { fit, kinds, .. } = needs;
    let BlocksThatFit { of, blocks, .. } = *fit;
    let same = kinds.windows(2).all(|kinds| kinds[0].weights == kinds[1].weights);
    let each = if same { "each" } else { "each on average" };
    let mut detail = format!(
        "{} for weights: {blocks} of {of} blocks fit in {}, {} {each}",
        size(fit.weight_room),
        fit.dtype,
        size(fit.block_bytes)
    );
    // Up to the first dtype in which all fit.
    let enough = fit.blocks_in_less.iter().position(|(_, fitting)| *fitting == of).map_or(usize::MAX, |last| last + 1);
    let more = fit.blocks_in_less.iter().take(enough).filter(|(_, fitting)| *fitting > blocks);
    let more: Vec<String> = more.map(|(dtype, fitting)| format!("{fitting} in {dtype}")).collect();
    if !more.is_empty() {
        detail.push_str(&format!(" ({})", more.join(", ")));
    }
    let in_files = fit.experts_may_stay_in_files && blocks < of;
    if blocks == 0 {
        let mut ways = Vec::new();
        if let Some((dtype, _)) = fit.blocks_in_less.iter().find(|(_, fitting)| *fitting > 0) {
            ways.push(format!("serve with --dtype {dtype}"));
        }
        if in_files {
            ways.push(
                "say which blocks (--blocks), whose experts are read from their files then, as fast as the disk is"
                    .into(),
            );
        }
        ways.push("close other programs, use another machine, or a smaller model".into());
        return Check::fail(NAME, detail, ways.join("; or "));
    }
    detail.push_str(&format!(
        "; beside them {} for sessions ({} tokens), {} for stashes of training",
        size(fit.kv_bytes),
        fit.kv_tokens,
        size(fit.stash_bytes)
    ));
    if in_files {
        detail.push_str("; with --blocks more, whose experts are read from their files, as fast as the disk is");
    }
    Check::ok(NAME, detail)
}

#[cfg(test)]
mod tests;
