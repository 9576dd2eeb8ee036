"""Windows and rotary scalings of the families that the first six begin with."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from families import Family

LLAMA = dict(model_class=LlamaForCausalLM, config_class=LlamaConfig, saved_dtype=torch.float16)

FAMILIES = [
    Family(
        name="mistral-window",
        seed=402,
        model_class=MistralForCausalLM,
        config_class=MistralConfig,
        config=dict(sliding_window=6, tie_word_embeddings=False),
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="qwen2-window",
        seed=402,
        model_class=Qwen2ForCausalLM,
        config_class=Qwen2Config,
        # The last two blocks have the window.
        config=dict(use_sliding_window=True, sliding_window=6, max_window_layers=2, tie_word_embeddings=True),
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="llama-yarn",
        seed=406,
        # The factor of attention follows from that of positions. The eight frequencies fall into all three regions.
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_theta=500.0,
            rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
            attention_bias=True,
            mlp_bias=True,
        ),
        **LLAMA,
    ),
    Family(
        name="llama-yarn-mscale",
        seed=419,
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_theta=500.0,
            rope_scaling=dict(
                rope_type="yarn",
                factor=16.0,
                original_max_position_embeddings=32,
                mscale=1.4,
                mscale_all_dim=0.6,
                beta_fast=4.0,
                beta_slow=0.5,
            ),
            tie_word_embeddings=True,
        ),
        **LLAMA,
    ),
    Family(
        name="qwen3-yarn",
        seed=420,
        model_class=Qwen3ForCausalLM,
        config_class=Qwen3Config,
        # The original length is left out, so it is that of the configuration.
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_theta=1000.0,
            max_position_embeddings=128,
            rope_scaling=dict(type="yarn", factor=4.0, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0),
        ),
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="llama-dynamic-rope",
        seed=413,
        # Every text is shorter than 64 tokens, where the scaling has not begun.
        config=dict(rope_scaling=dict(rope_type="dynamic", factor=4.0), max_position_embeddings=64),
        **LLAMA,
    ),
]
