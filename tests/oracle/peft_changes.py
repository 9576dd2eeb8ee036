"""Adapters of a base's weights, and key/value prefixes, as PEFT itself writes and reads them."""

import json
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file, save_file
from torch import Tensor

from anatomy import body
from peft_adapters import load_base

CAUSAL = TaskType.CAUSAL_LM
RANK, ALPHA = 3, 5


def save_peft(adapted, model: Path, out: Path) -> None:
    """The adapter of a make_adapters.Adapted, whose modules are each a projection of their own, as PEFT saves it."""
    base = load_base(model, "causal-lm")
    suffixes = {name: site.path.rsplit(".", 1)[-1] for name, site in adapted.sites.items()}
    if adapted.kind == "prefix":
        dim = adapted.heads * adapted.head_dim
        config = PrefixTuningConfig(
            task_type=CAUSAL, num_virtual_tokens=len(adapted.prefix), token_dim=dim, num_attention_heads=adapted.heads
        )
        peft = get_peft_model(base, config)
        with torch.no_grad():
            peft.prompt_encoder["default"].embedding.weight.copy_(adapted.prefix)
        return save(peft, adapted.score, out)
    if adapted.kind == "lora":
        peft = get_peft_model(base, lora(list(suffixes.values())))
    else:
        targets = [suffixes[name] for name in adapted.scaled]
        feedforward = [suffixes["down"]] if "down" in adapted.scaled else []
        peft = get_peft_model(base, IA3Config(task_type=CAUSAL, target_modules=targets, feedforward_modules=feedforward))
    parameters = dict(peft.base_model.model.named_parameters())
    start = next(name for name, module in base.named_modules() if module is body(base))
    layers = "h" if hasattr(body(base), "h") else "layers"
    with torch.no_grad():
        for name, value in adapted.parameters.items():
            block, module, part = name.split(".")
            suffix = ".default" if part == "ia3_l" else ".default.weight"
            parameter = parameters[f"{start}.{layers}.{block}.{adapted.sites[module].path}.{part}{suffix}"]
            parameter.copy_(value.view_as(parameter))
    save(peft, adapted.score, out)


def lora(targets: list[str] | None) -> LoraConfig:
    return LoraConfig(task_type=CAUSAL, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)


def save_fused_lora(adapted, model: Path, out: Path, seed: int) -> None:
    """A random LoRA on projections as the checkpoint has them: those that PEFT takes by default, all where it has no default."""
    base = load_base(model, "causal-lm")
    every = sorted({site.path.rsplit(".", 1)[-1] for site in adapted.sites.values()})
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    peft = get_peft_model(base, lora(None if base.config.model_type in known else every))
    generator = torch.Generator().manual_seed(seed + 8)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    save(peft, adapted.score, out)


def save(peft: PeftModel, score: Tensor, out: Path) -> None:
    """The adapter as PEFT saves it, with a score head beside it for runs that classify."""
    peft.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    saved = json.loads(file.read_text()) | {"base_model_name_or_path": "../../model"}
    saved |= {key: sorted(saved[key]) for key in ("target_modules", "feedforward_modules") if saved.get(key)}
    file.write_text(json.dumps(saved, indent=2) + "\n")
    tensors = load_file(out / "adapter_model.safetensors") | {"score.weight": score.detach()}
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})


@torch.no_grad()
def loaded_logits(model: Path, out: Path, ids: Tensor) -> Tensor:
    """Logits at the text of an adapter as PEFT loads it."""
    peft = PeftModel.from_pretrained(load_base(model, "causal-lm"), out).eval()
    return peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
