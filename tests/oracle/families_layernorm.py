"""Families with layer norms and an MLP without a gate: BLOOM, Falcon, GPT-NeoX."""

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from families import BOS, EOS, LAYERS, VOCAB, Family, Optimiser

SHARED = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    initializer_range=0.2,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
# What every token has in common, turned down, so that greedy texts do not repeat one token.
QUIET = {"ln_f.bias": 0.2, "4h_to_h.bias": 0.2, "dense.bias": 0.2, "embeddings_layernorm.weight": 0.3}
BLOOM = dict(model_class=BloomForCausalLM, config_class=BloomConfig, shared=SHARED)
FALCON = dict(model_class=FalconForCausalLM, config_class=FalconConfig, shared=SHARED | dict(ffn_hidden_size=64))
NEOX = dict(
    model_class=GPTNeoXForCausalLM,
    config_class=GPTNeoXConfig,
    shared=SHARED | dict(intermediate_size=64, max_position_embeddings=512),
)

FAMILIES = [
    Family(
        name="bloom",
        seed=207,
        config=dict(layer_norm_epsilon=1e-5),
        scales=QUIET,
        saved_dtype=torch.float16,
        curves=Optimiser(),
        **BLOOM,
    ),
    Family(
        name="bloom-3-heads",
        seed=217,
        # Slopes of ALiBi that are not powers of two, the residual behind the norm, names as in BLOOM's own files.
        config=dict(hidden_size=24, num_attention_heads=3, apply_residual_connection_post_layernorm=True),
        scales=QUIET,
        bare_names=True,
        **BLOOM,
    ),
    Family(
        name="falcon-7b",
        seed=223,
        config=dict(multi_query=True, parallel_attn=True, bias=False, alibi=False),
        saved_dtype=torch.bfloat16,
        **FALCON,
    ),
    Family(
        name="falcon-40b",
        seed=227,
        config=dict(new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
        saved_dtype=torch.bfloat16,
        peft=("prompt-tuning", "lora"),
        **FALCON,
    ),
    Family(
        name="falcon-rw",
        seed=222,
        config=dict(multi_query=False, parallel_attn=False, bias=True, alibi=True, layer_norm_epsilon=1e-3),
        saved_dtype=torch.float16,
        scales=QUIET,
        **FALCON,
    ),
    Family(
        name="falcon-11b",
        seed=222,
        config=dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, rope_theta=500042.0),
        saved_dtype=torch.bfloat16,
        peft=("prompt-tuning", "lora"),
        **FALCON,
    ),
    Family(
        name="gpt-neox",
        seed=214,
        # Of the 16 values of a head 4 are rotated.
        config=dict(num_attention_heads=2, rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False),
        saved_dtype=torch.float16,
        **NEOX,
    ),
    Family(
        name="gpt-neox-sequential",
        seed=231,
        config=dict(
            rotary_pct=1.0,
            use_parallel_residual=False,
            attention_bias=False,
            hidden_act="gelu_fast",
            layer_norm_eps=1e-3,
            tie_word_embeddings=True,
        ),
        saved_dtype=torch.float16,
        **NEOX,
    ),
]
