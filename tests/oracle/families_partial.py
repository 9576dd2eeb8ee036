"""Families that rotate a part of a head, or not in every block, or keep several projections in one: Phi-3, SmolLM3, GLM, GLM-4."""

import torch
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from families import SHARED, Family

PAD = dict(pad_token_id=None)
PHI3 = dict(model_class=Phi3ForCausalLM, config_class=Phi3Config, shared=SHARED | PAD, saved_dtype=torch.bfloat16)
# The list that a sequence's length does not choose would give other logits.
SHORT, LONG = [1.0, 1.1, 1.4, 2.0], [1.5, 3.0, 7.0, 20.0]

FAMILIES = [
    Family(
        name="phi3",
        seed=503,
        config=dict(sliding_window=6, tie_word_embeddings=False),
        **PHI3,
    ),
    Family(
        name="phi3-longrope",
        seed=507,
        # Half of the 16 values of a head are rotated. Texts are shorter than the original length.
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            partial_rotary_factor=0.5,
            max_position_embeddings=512,
            original_max_position_embeddings=64,
            rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG),
            tie_word_embeddings=True,
        ),
        **PHI3,
    ),
    Family(
        name="phi3-longrope-long",
        seed=512,
        # Texts are all longer than the original length.
        config=dict(
            max_position_embeddings=64,
            original_max_position_embeddings=3,
            rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG),
        ),
        **PHI3,
    ),
    Family(
        name="smollm3",
        seed=511,
        model_class=SmolLM3ForCausalLM,
        config_class=SmolLM3Config,
        # The second and the last block do not rotate; these have the window.
        config=dict(
            no_rope_layers=[1, 0, 1, 0],
            use_sliding_window=True,
            sliding_window=6,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
        shared=SHARED | PAD,
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="glm4",
        seed=508,
        model_class=Glm4ForCausalLM,
        config_class=Glm4Config,
        config=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            partial_rotary_factor=0.5,
            attention_bias=True,
            rms_norm_eps=1e-5,
        ),
        shared=SHARED | PAD,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="glm",
        seed=513,
        model_class=GlmForCausalLM,
        config_class=GlmConfig,
        config=dict(head_dim=8, partial_rotary_factor=0.5, attention_bias=False, tie_word_embeddings=True),
        shared=SHARED | PAD,
        saved_dtype=torch.float16,
    ),
]
