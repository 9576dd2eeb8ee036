"""Families with norms behind what a block adds: the Gemmas, OLMo 2."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from families import SHARED, Family

# Norms multiply by 1 + w. Embeddings, which are scaled by the root of their width, are small beside what blocks add.
PLUS_ONE = dict(
    shared=SHARED | dict(pad_token_id=None, head_dim=16),
    norms=(-0.5, 0.5),
    scales={"embed_tokens.weight": 0.5},
    saved_dtype=torch.bfloat16,
)
# PEFT 0.17.1 reads prefixes of these two as if there were two blocks, and fails.
NO_PREFIX = ("prompt-tuning", "lora", "ia3")

FAMILIES = [
    Family(
        name="gemma",
        seed=606,
        model_class=GemmaForCausalLM,
        config_class=GemmaConfig,
        config=dict(num_key_value_heads=1, tie_word_embeddings=True),
        **PLUS_ONE,
    ),
    Family(
        name="gemma2",
        seed=602,
        model_class=Gemma2ForCausalLM,
        config_class=Gemma2Config,
        # Soft caps that bend most of what they get; the first and the third block have the window.
        config=dict(
            sliding_window=6,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
            query_pre_attn_scalar=9,
            tie_word_embeddings=True,
        ),
        peft=NO_PREFIX,
        **PLUS_ONE,
    ),
    Family(
        name="gemma3-text",
        seed=621,
        model_class=Gemma3ForCausalLM,
        config_class=Gemma3TextConfig,
        # Only the third block sees everything, with other frequencies, which are scaled.
        config=dict(
            sliding_window=6,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=12,
            rope_theta=1000000.0,
            rope_local_base_freq=100.0,
            rope_scaling=dict(rope_type="linear", factor=8.0),
            tie_word_embeddings=True,
        ),
        peft=NO_PREFIX,
        **PLUS_ONE,
    ),
    Family(
        name="olmo2",
        seed=612,
        model_class=Olmo2ForCausalLM,
        config_class=Olmo2Config,
        config=dict(rope_theta=500000.0, tie_word_embeddings=False, pad_token_id=None),
        saved_dtype=torch.float16,
    ),
]
