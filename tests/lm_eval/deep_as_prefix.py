"""Writes deep prompts that replace as a PREFIX_TUNING adapter of PEFT: the keys and values that they lead to, which transformers computes.

usage: deep_as_prefix.py MODEL_DIR ADAPTER_DIR OUT
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracle"))
from reference import Tables, injected  # noqa: E402


@torch.no_grad()
def keys_and_values(model_dir: Path, tables: Tables) -> torch.Tensor:
    """What each block's attention sees of the prompts: [layers, 2, heads, m, head size]."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with injected(model, tables):
        cache = model.model(inputs_embeds=tables.P[None], use_cache=True).past_key_values
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])


def main() -> None:
    model_dir, adapter_dir, out = map(Path, sys.argv[1:])
    adapter = load_file(adapter_dir / "adapter_model.safetensors")
    tables = Tables("replace", adapter["prompt_embeddings"], adapter["intermediate_prompt_embeddings"])
    seen = keys_and_values(model_dir, tables)
    layers, _, heads, count, size = seen.shape
    out.mkdir(parents=True, exist_ok=True)
    # A row for each virtual token, as PEFT takes it apart again.
    rows = seen.permute(3, 0, 1, 2, 4).reshape(count, -1).contiguous()
    save_file({"prompt_embeddings": rows}, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model_dir), "inference_mode": True,
        "num_virtual_tokens": count, "num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size,
        "num_transformer_submodules": 1, "encoder_hidden_size": heads * size, "prefix_projection": False,
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
