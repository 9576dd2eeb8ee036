"""Families that are written only when they are named."""

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from families import SHARED, Family

LAYER_NORM = {name: value for name, value in SHARED.items() if name != "rms_norm_eps"} | dict(pad_token_id=None)
EXTRA = dict(extra=True, saved_dtype=torch.bfloat16)

FAMILIES = [
    Family(
        name="phi",
        seed=703,
        model_class=PhiForCausalLM,
        config_class=PhiConfig,
        config=dict(num_attention_heads=2, num_key_value_heads=2, partial_rotary_factor=0.5),
        shared=LAYER_NORM,
        **EXTRA,
    ),
    Family(
        name="granite",
        seed=709,
        model_class=GraniteForCausalLM,
        config_class=GraniteConfig,
        config=dict(
            embedding_multiplier=3.0,
            attention_multiplier=0.2,
            residual_multiplier=0.7,
            logits_scaling=0.5,
            tie_word_embeddings=True,
            pad_token_id=None,
        ),
        **EXTRA,
    ),
    Family(
        name="cohere",
        seed=707,
        model_class=CohereForCausalLM,
        config_class=CohereConfig,
        config=dict(logit_scale=0.7, use_qk_norm=True),
        shared=LAYER_NORM,
        scales={"embed_tokens.weight": 0.7},
        **EXTRA,
    ),
    Family(
        name="olmo",
        seed=711,
        model_class=OlmoForCausalLM,
        config_class=OlmoConfig,
        config=dict(clip_qkv=1.0, tie_word_embeddings=False),
        shared=LAYER_NORM,
        **EXTRA,
    ),
    Family(
        name="stablelm",
        seed=707,
        model_class=StableLmForCausalLM,
        config_class=StableLmConfig,
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            partial_rotary_factor=0.25,
            use_qkv_bias=True,
            use_parallel_residual=True,
        ),
        shared=LAYER_NORM,
        **EXTRA,
    ),
    Family(
        name="starcoder2",
        seed=706,
        model_class=Starcoder2ForCausalLM,
        config_class=Starcoder2Config,
        config=dict(sliding_window=6, use_bias=True, tie_word_embeddings=False),
        shared=LAYER_NORM,
        **EXTRA,
    ),
]
