"""The tiny random checkpoints: one entry per thing a family does differently."""

from dataclasses import dataclass, field

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
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
    attn_implementation="eager",
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
    """A golden directory: the model, how it is saved, what is recorded beside logits and gradients."""

    name: str
    seed: int
    model_class: type
    config_class: type
    config: dict = field(default_factory=dict)
    bos: bool = True
    saved_dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    curves: Optimiser | None = None
    peft_seq_cls: bool = False


FAMILIES = [
    Family(
        name="llama-gqa",
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
        seed=104,
        model_class=MistralForCausalLM,
        config_class=MistralConfig,
        config=dict(head_dim=16, sliding_window=None, rms_norm_eps=1e-5, tie_word_embeddings=False),
        curves=Optimiser(schedule="cosine", weight_decay=0.1, clip=0.5),
    ),
    Family(
        name="qwen2",
        seed=115,
        model_class=Qwen2ForCausalLM,
        config_class=Qwen2Config,
        config=dict(rope_theta=1000000.0, tie_word_embeddings=True),
        bos=False,
    ),
    Family(
        name="qwen3",
        seed=126,
        model_class=Qwen3ForCausalLM,
        config_class=Qwen3Config,
        config=dict(head_dim=16, rope_theta=1000000.0, tie_word_embeddings=False),
        bos=False,
        curves=Optimiser(schedule="constant", weight_decay=0.0, clip=0.0, warmup=0),
    ),
]


def build(family: Family) -> PreTrainedModel:
    """The family's random model in f32, eager attention, frozen; norm weights in [0.5, 1.5), biases normal(0.3).

    A model that is saved in half precision is rounded first, so that what is recorded belongs to the file.
    """
    torch.manual_seed(family.seed)
    model = family.model_class(family.config_class(**{**SHARED, **family.config})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            parameter.copy_(parameter.to(family.saved_dtype))
    return model.requires_grad_(False)
