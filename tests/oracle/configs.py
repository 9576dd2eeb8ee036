"""How transformers reads the configurations of tests/goldens/configs/variants.json: tests/goldens/configs/expected.json.

usage: configs.py    (once in an environment of requirements-configs-4.txt, once of requirements-configs-5.txt)

Each run writes the answers of its version beside those of the other one. Neither needs torch: the frequencies are computed by
transformers' own functions over numpy, with a few names of torch put in their place.
"""

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import transformers
from transformers import AutoConfig, modeling_rope_utils

HERE = Path(__file__).resolve().parent.parent / "goldens" / "configs"
MAJOR = transformers.__version__.split(".")[0]
logging.disable(logging.WARNING)


class Tensor(np.ndarray):
    def to(self, device=None, dtype=None):
        return self.astype(dtype or self.dtype)


class Torch:
    """What the functions of frequencies use of torch."""

    Tensor, int64, float = Tensor, np.int64, np.float32

    @staticmethod
    def arange(start, stop, step, dtype):
        return np.arange(start, stop, step, dtype=dtype).view(Tensor)

    @staticmethod
    def where(condition, yes, no):
        return np.where(condition, yes, no).astype(np.float32).view(Tensor)


modeling_rope_utils.torch = Torch


def default_frequencies(theta, dim):
    """`compute_default_rope_parameters` of transformers 5's models, which need torch to be imported."""
    powers = Torch.arange(0, dim, 2, dtype=Torch.int64).to(dtype=Torch.float) / np.float32(dim)
    return np.float32(1.0) / (np.float32(theta) ** powers)


def rope(config, head_dim):
    """Base, kind and frequencies, as `LlamaRotaryEmbedding` and its copies look them up."""
    if MAJOR == "5":
        parameters = config.rope_parameters
        theta, kind = parameters["rope_theta"], parameters["rope_type"]
    else:
        theta, scaling = config.rope_theta, getattr(config, "rope_scaling", None)
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else "default"
    if kind == "default":
        return theta, kind, default_frequencies(theta, head_dim)
    if kind in ("linear", "llama3"):
        return theta, kind, modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, None)[0]
    modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]  # a KeyError for what there is not
    return theta, kind, None


def window(config):
    """The window and the layers that have one: of Mistral's all, of Qwen's those named so, of Llama's none."""
    layers = range(config.num_hidden_layers)
    if config.model_type == "llama":
        return None, []
    if config.model_type == "mistral":
        sliding = [] if config.sliding_window is None else list(layers)
    else:
        unknown = set(config.layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise KeyError(f"no attention mask for {unknown}")
        sliding = [i for i in layers if config.layer_types[i] == "sliding_attention"]
        if sliding and config.sliding_window is None:
            raise ValueError("sliding layers and no window: no attention mask")
    return config.sliding_window, sliding


def read(text):
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(text)
        config = AutoConfig.from_pretrained(directory)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    if head_dim is None and config.model_type in ("llama", "mistral"):
        head_dim = config.hidden_size // config.num_attention_heads
    # What the model's classes do before anything is loaded: they allocate by these, look up the activation, divide.
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(getattr(config, name), int):
            raise TypeError(f"torch takes integers alone as sizes: {name}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError("heads are not shared evenly")
    if head_dim % 2:
        raise ValueError("half a head is rotated")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"another activation: {config.hidden_act}")
    if MAJOR == "4" and getattr(config, "partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("as many cosines as a part of a head has do not fit all of it")
    theta, kind, frequencies = rope(config, head_dim)
    size, sliding = window(config)
    eos = config.eos_token_id
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps + 0.0,
        "rope_theta": theta + 0.0,
        "rope_type": kind,
        "frequencies": None if frequencies is None else [float(f"{f:.9g}") for f in frequencies],
        "sliding_window": size,
        "sliding_layers": sliding,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": [] if eos is None else eos if isinstance(eos, list) else [eos],
    }


def main():
    file = HERE / "expected.json"
    expected = json.loads(file.read_text()) if file.exists() else {}
    variants = json.loads((HERE / "variants.json").read_text())
    expected.setdefault("versions", {})[MAJOR] = transformers.__version__
    results = {}
    for variant in variants["variants"]:
        config = {k: v for k, v in variants["bases"][variant["base"]].items() if k not in variant.get("drop", [])}
        config |= variant.get("set", {})
        try:
            results[variant["name"]] = read(json.dumps(config))
        except Exception as error:  # noqa: BLE001: whatever it says is the answer
            said = (str(error).strip().splitlines() or [""])[0][:120]
            results[variant["name"]] = {"error": f"{type(error).__name__}: {said}"}
    expected[MAJOR] = results
    lines = []
    for key in ("versions", "4", "5"):
        body = expected.get(key, {})
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items())
        lines.append(f"{json.dumps(key)}: {{\n{rows}\n}}")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
