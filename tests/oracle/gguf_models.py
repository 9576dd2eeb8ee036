"""Tiny random models, converted to GGUF by llama.cpp's own converter, with the logits that transformers has for what they were made from.

    LLAMA_CPP=DIR python tests/oracle/gguf_models.py [--out DIR] [NAME ...]

DIR is a checkout of github.com/ggml-org/llama.cpp (b9000 or about; its `convert_hf_to_gguf.py` needs torch and transformers 4.57). Without names
the models of KEPT are written to tests/goldens/gguf: NAME.gguf, and NAME.json with `input_ids`, `logits` (hexadecimal, f32), the `config` of the
checkpoint and the `names` of its tensors, by which the test makes its fingerprint. Vocabularies are left out: no tokenizer belongs to them.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as T
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path[:0] = [os.environ["LLAMA_CPP"], os.environ["LLAMA_CPP"] + "/gguf-py"]
import gguf  # noqa: E402
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # noqa: E402

logging.disable(logging.CRITICAL)
VOCABULARY, TEXT = 48, 14
COMMON = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=64,
              initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GQA = dict(COMMON, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
MODELS = {
    "llama": T.LlamaConfig(**GQA, head_dim=12, rope_scaling=LLAMA3, rope_theta=10_000.0, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "llama-biases": T.LlamaConfig(**GQA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-long": T.LlamaConfig(**GQA, head_dim=12, rope_scaling=dict(LLAMA3, low_freq_factor=2.0)),
    "mistral": T.MistralConfig(**GQA, sliding_window=None),
    "mixtral": T.MixtralConfig(**GQA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2-q8_0": T.Qwen2Config(**dict(GQA, intermediate_size=64), tie_word_embeddings=True),
    "qwen3": T.Qwen3Config(**GQA, head_dim=12, tie_word_embeddings=True),
    "qwen2moe": T.Qwen2MoeConfig(**GQA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=48),
    "qwen3moe": T.Qwen3MoeConfig(**GQA, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True),
    "gemma": T.GemmaConfig(**dict(GQA, num_key_value_heads=1), head_dim=12),
    "gemma2": T.Gemma2Config(**GQA, head_dim=12, query_pre_attn_scalar=12, sliding_window=6),
    "gemma3": T.Gemma3TextConfig(**dict(GQA, hidden_size=16, intermediate_size=24, num_hidden_layers=7), head_dim=8, query_pre_attn_scalar=8, sliding_window=6,
                                 rope_theta=1_000_000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
    "phi3": T.Phi3Config(**GQA, sliding_window=None),
    "phi3-longrope": T.Phi3Config(**GQA, original_max_position_embeddings=16, rope_scaling=dict(
        type="longrope", short_factor=[1.0, 1.05, 1.1, 1.4], long_factor=[1.0, 1.7, 3.1, 8.25])),
    "gptneox": T.GPTNeoXConfig(**COMMON, rotary_pct=0.5),
    "bloom": T.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, seq_length=64),
    "falcon-7b": T.FalconConfig(**{k: v for k, v in COMMON.items() if k != "intermediate_size"}, multi_query=True, bias=False),
    "falcon-40b": T.FalconConfig(**{k: v for k, v in COMMON.items() if k != "intermediate_size"}, new_decoder_architecture=True, num_kv_heads=2, bias=False),
    "olmo2": T.Olmo2Config(**GQA),
    "smollm3": T.SmolLM3Config(**dict(GQA, num_hidden_layers=4)),
    "glm4": T.Glm4Config(**GQA, head_dim=16, partial_rotary_factor=0.5, attention_bias=True),
    "gpt-oss": T.GptOssConfig(**dict(GQA, intermediate_size=32), head_dim=12, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
}
KEPT = ["llama", "qwen3moe", "gemma3", "gptneox", "qwen2-q8_0", "gpt-oss"]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Norms, biases and sinks that are not what they are without training; everything in half precision."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "bias" in name or "norm" in name:
            parameter.data += torch.randn_like(parameter) * 0.2
        parameter.data = parameter.data.half().float()
    return model


def through_q8_0(model: torch.nn.Module) -> None:
    """What is left of matrices in Q8_0."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            packed = gguf.quants.quantize(parameter.data.numpy(), gguf.GGMLQuantizationType.Q8_0)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0).copy())


def in_mxfp4(directory: Path, model: torch.nn.Module) -> None:
    """Experts in MXFP4, as gpt-oss comes, and what they are of it in the model."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(directory / "model.safetensors")
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        state[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    model.load_state_dict(state)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(config, quantization_config={"quant_method": "mxfp4"})))


def convert(directory: Path, out: Path, kind: str) -> None:
    hparams = ModelBase.load_hparams(directory, False)
    cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)
    without_tokens = type("WithoutTokens", (cls,), {"set_vocab": lambda self: None, "model_arch": cls.model_arch})
    with torch.inference_mode():
        without_tokens(directory, getattr(gguf.LlamaFileType, kind), out, eager=True, model_name="tiny").write()


def write(name: str, out: Path) -> None:
    torch.manual_seed(7)
    torch.set_num_threads(1)
    config = MODELS[name]
    config._attn_implementation = "eager"
    model = randomised(T.AutoModelForCausalLM.from_config(config).float().eval())
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        model.save_pretrained(directory)
        if name == "gpt-oss":
            in_mxfp4(directory, model)
        if name == "falcon-7b":
            # As Falcon's own, where transformers writes one for each head, which mean nothing.
            path = directory / "config.json"
            path.write_text(json.dumps(dict(json.loads(path.read_text()), num_kv_heads=1)))
        # The converter of Gemma 3 counts them.
        vocabulary = {str(number): number for number in range(VOCABULARY)}
        (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
        out.mkdir(parents=True, exist_ok=True)
        convert(directory, out / f"{name}.gguf", "MOSTLY_Q8_0" if name.endswith("q8_0") else "MOSTLY_F16")
        if name.endswith("q8_0"):
            through_q8_0(model)
        ids = torch.from_numpy(np.random.default_rng(7).integers(3, VOCABULARY, (1, TEXT)))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0].numpy().astype("<f4")
        with safe_open(directory / "model.safetensors", "pt") as file:
            names = sorted(file.keys())
        config = json.loads((directory / "config.json").read_text())
    golden = {"config": config, "names": names, "input_ids": ids[0].tolist(), "logits": logits.tobytes().hex()}
    (out / f"{name}.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "goldens/gguf")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    for chosen in arguments.names or KEPT:
        write(chosen, arguments.out)
        print(chosen, (arguments.out / f"{chosen}.gguf").stat().st_size)
