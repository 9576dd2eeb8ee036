"""Mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE, GPT-OSS."""

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from families import ALL_KINDS, SHARED, Family, Optimiser

# Logits of routers far from ties.
DECIDED = {".gate.weight": 3.0, ".router.weight": 3.0}
MIXTRAL = dict(model_class=MixtralForCausalLM, config_class=MixtralConfig, scales=DECIDED)

FAMILIES = [
    Family(
        name="mixtral",
        seed=319,
        config=dict(
            intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, rms_norm_eps=1e-5
        ),
        saved_dtype=torch.float16,
        curves=Optimiser(),
        kinds=ALL_KINDS,
        **MIXTRAL,
    ),
    Family(
        name="mixtral-8-experts",
        seed=312,
        config=dict(intermediate_size=16, num_local_experts=8, num_experts_per_tok=4, tie_word_embeddings=True),
        saved_dtype=torch.bfloat16,
        **MIXTRAL,
    ),
    Family(
        name="qwen2-moe",
        seed=314,
        model_class=Qwen2MoeForCausalLM,
        config_class=Qwen2MoeConfig,
        # The second block has one MLP for all.
        config=dict(
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            norm_topk_prob=False,
            mlp_only_layers=[1],
            decoder_sparse_step=1,
            qkv_bias=True,
        ),
        scales=DECIDED,
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="qwen3-moe",
        seed=306,
        model_class=Qwen3MoeForCausalLM,
        config_class=Qwen3MoeConfig,
        # Every second block has experts.
        config=dict(
            head_dim=16,
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=16,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            rope_theta=1000000.0,
        ),
        scales=DECIDED,
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
    Family(
        name="gpt-oss",
        seed=322,
        model_class=GptOssForCausalLM,
        config_class=GptOssConfig,
        # Gates and ups reach the limit of 7.
        config=dict(
            head_dim=16,
            intermediate_size=16,
            num_local_experts=6,
            num_experts_per_tok=2,
            sliding_window=6,
            rope_theta=150000.0,
            rope_scaling=dict(
                rope_type="yarn",
                factor=8.0,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=64,
            ),
        ),
        scales=DECIDED | {"gate_up_proj": 4.0, "experts.down_proj": 0.2},
        bos=False,
        saved_dtype=torch.bfloat16,
    ),
]
