"""The tiny random checkpoints: one entry per thing a family does differently."""

from dataclasses import dataclass, field

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

BOS, EOS = 0, 1
VOCAB = 320
LAYERS = 4

SHARED = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
    rms_norm_eps=1e-6,
    bos_token_id=BOS,
    eos_token_id=EOS,
)


@dataclass(frozen=True)
class Optimiser:
    """How a training curve is run. `clip` 0 means no clipping."""

    schedule: str = "linear"
    lr: float = 1e-2
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 4
    steps: int = 20
    batch_size: int = 4


@dataclass(frozen=True)
class Family:
    """A golden directory: the model, how it is saved, what is recorded beside logits and gradients.

    `config` goes over `shared`. `norms` is the range of the norms' weights, `scales` multiplies parameters by the ends
    of their names. `bare_names`: tensors are saved without the name of the model's body. `kinds` are those of
    make_adapters.py, `peft` the folders that PEFT writes. A family that is `extra` is written only when it is named.
    """

    name: str
    seed: int
    model_class: type
    config_class: type
    config: dict = field(default_factory=dict)
    shared: dict = field(default_factory=lambda: SHARED)
    norms: tuple[float, float] = (0.5, 1.5)
    scales: dict[str, float] = field(default_factory=dict)
    bos: bool = True
    saved_dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    curves: Optimiser | None = None
    peft_seq_cls: bool = False
    bare_names: bool = False
    kinds: tuple[str, ...] = ("lora", "ia3", "prefix")
    peft: tuple[str, ...] = ("prompt-tuning", "lora", "ia3", "prefix")
    extra: bool = False


ALL_KINDS = ("lora", "ia3", "prefix", "replace+lora", "prefix+ia3")

# The first six, which have every kind of adapter; families_more.py puts the others beside them.
FAMILIES = [
    Family(
        name="llama-gqa",
        kinds=ALL_KINDS,
        seed=101,
        model_class=LlamaForCausalLM,
        config_class=LlamaConfig,
        config=dict(rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False),
        shard_size="64KB",
        curves=Optimiser(),
        peft_seq_cls=True,
    ),
    Family(
        name="llama3-rope",
        kinds=ALL_KINDS,
        seed=102,
        model_class=LlamaForCausalLM,
        config_class=LlamaConfig,
        # With head_dim 16 the eight frequencies fall into all three regions of the rule: kept, blended, divided.
        config=dict(
            head_dim=16,
            rope_theta=500000.0,
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
            tie_word_embeddings=True,
        ),
    ),
    Family(
        name="llama-linear-rope",
        kinds=ALL_KINDS,
        seed=113,
        model_class=LlamaForCausalLM,
        config_class=LlamaConfig,
        # Multi-head attention (no grouping) and a float16 file, as the first Llamas had.
        config=dict(
            num_key_value_heads=4,
            rope_scaling=dict(type="linear", factor=4.0),
            tie_word_embeddings=False,
        ),
        saved_dtype=torch.float16,
    ),
    Family(
        name="mistral",
        kinds=ALL_KINDS,
        seed=104,
        model_class=MistralForCausalLM,
        config_class=MistralConfig,
        config=dict(head_dim=16, sliding_window=None, rms_norm_eps=1e-5, tie_word_embeddings=False),
        curves=Optimiser(schedule="cosine", weight_decay=0.1, clip=0.5),
    ),
    Family(
        name="qwen2",
        kinds=ALL_KINDS,
        seed=115,
        model_class=Qwen2ForCausalLM,
        config_class=Qwen2Config,
        config=dict(rope_theta=1000000.0, tie_word_embeddings=True),
        bos=False,
    ),
    Family(
        name="qwen3",
        kinds=ALL_KINDS,
        seed=126,
        model_class=Qwen3ForCausalLM,
        config_class=Qwen3Config,
        config=dict(head_dim=16, rope_theta=1000000.0, tie_word_embeddings=False),
        bos=False,
        curves=Optimiser(schedule="constant", weight_decay=0.0, clip=0.0, warmup=0),
    ),
]


def attention_of(config: PretrainedConfig) -> str:
    """transformers' implementation of attention: eager, which of Falcon would count ALiBi twice (mask and scores both)."""
    return "sdpa" if config.model_type == "falcon" and config.alibi else "eager"


def build(family: Family) -> PreTrainedModel:
    """The family's random model in f32, frozen; norm weights in `norms`, biases normal(0.3), attention sinks normal(1).

    A model that is saved in half precision is rounded first, so that what is recorded belongs to the file.
    """
    torch.manual_seed(family.seed)
    config = family.config_class(**{**family.shared, **family.config})
    config._attn_implementation = attention_of(config)
    model = family.model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "norm" in name or ".ln_" in name:
                parameter.uniform_(*family.norms)
            elif name.endswith("sinks"):
                parameter.normal_()
            for end, scale in family.scales.items():
                if name.endswith(end):
                    parameter.mul_(scale)
            parameter.copy_(parameter.to(family.saved_dtype))
    return model.requires_grad_(False)
