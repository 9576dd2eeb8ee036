"""Where transformers' model classes keep their blocks, their head and the projections that adapters change."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

MODULES = ["q", "k", "v", "o", "gate", "up", "down"]


def body(model: PreTrainedModel) -> PreTrainedModel:
    """The model below its head: embeddings, blocks and the final norm."""
    return getattr(model, "model", None) or model.base_model


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    inner = body(model)
    return list(inner.layers if hasattr(inner, "layers") else inner.h)


def head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits of final-normed states, as the model's own forward makes them."""
    logits, config = model.get_output_embeddings()(states), model.config
    if config.model_type == "granite":
        logits = logits / config.logits_scaling
    if config.model_type == "cohere":
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Site:
    """A projection in a block: the submodule that computes it, and its rows there where it shares that with others."""

    path: str
    rows: Tensor | None = None


def by_head(heads: int, dim: int) -> dict[str, Tensor]:
    """Rows of q, k and v where each head has its three one after another."""
    rows = torch.arange(heads * 3 * dim).view(heads, 3, dim)
    return {name: rows[:, n].flatten() for n, name in enumerate("qkv")}


def grouped(groups: int, queries: int, dim: int) -> dict[str, Tensor]:
    """Rows of q, k and v where each group has its queries, then its key, then its value."""
    rows = torch.arange(groups * (queries + 2) * dim).view(groups, queries + 2, dim)
    return {"q": rows[:, :-2].flatten(), "k": rows[:, -2].flatten(), "v": rows[:, -1].flatten()}


def stacked(**sizes: int) -> dict[str, Tensor]:
    """Rows of projections that lie below one another."""
    starts = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    return {name: torch.arange(start, start + size) for (name, size), start in zip(sizes.items(), starts)}


def fused_rows(config: PretrainedConfig) -> dict[str, Tensor]:
    """Rows of q, k and v in the projection that a family has for all three."""
    heads, dim = config.num_attention_heads, head_dim(config)
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return grouped(config.num_kv_heads, heads // config.num_kv_heads, dim)
    if config.model_type == "falcon" and config.multi_query:
        return grouped(1, heads, dim)
    if config.model_type == "phi3":
        return stacked(q=heads * dim, k=config.num_key_value_heads * dim, v=config.num_key_value_heads * dim)
    return by_head(heads, dim)


def is_mixture(config: PretrainedConfig) -> bool:
    return hasattr(config, "num_experts_per_tok")


def sites(config: PretrainedConfig) -> dict[str, Site]:
    """The projections of a block that adapters change, in the order of MODULES: none of experts, no gate where an MLP has none."""
    kind = config.model_type
    attention = {"bloom": "self_attention", "falcon": "self_attention", "gpt_neox": "attention"}.get(kind, "self_attn")
    if kind in ("bloom", "falcon", "gpt_neox", "phi3"):
        fused = "qkv_proj" if kind == "phi3" else "query_key_value"
        found = {name: Site(f"{attention}.{fused}", rows) for name, rows in fused_rows(config).items()}
    else:
        found = {name: Site(f"{attention}.{name}_proj") for name in "qkv"}
    found["o"] = Site(f"{attention}.{'dense' if kind in ('bloom', 'falcon', 'gpt_neox', 'phi') else 'o_proj'}")
    if is_mixture(config):
        return found
    up_and_down = {
        "bloom": ("dense_h_to_4h", "dense_4h_to_h"),
        "falcon": ("dense_h_to_4h", "dense_4h_to_h"),
        "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
        "phi": ("fc1", "fc2"),
        "starcoder2": ("c_fc", "c_proj"),
    }
    if kind in up_and_down:
        up, down = up_and_down[kind]
        return found | {"up": Site(f"mlp.{up}"), "down": Site(f"mlp.{down}")}
    if kind in ("phi3", "glm", "glm4"):
        rows = stacked(gate=config.intermediate_size, up=config.intermediate_size)
        found |= {name: Site("mlp.gate_up_proj", these) for name, these in rows.items()}
    else:
        found |= {"gate": Site("mlp.gate_proj"), "up": Site("mlp.up_proj")}
    return found | {"down": Site("mlp.down_proj")}


def scaled(config: PretrainedConfig) -> list[str]:
    """The projections that IA3 scales: keys and values as they come out, what goes into down."""
    return [name for name in ("k", "v", "down") if name in sites(config)]


def watch_routers(model: PreTrainedModel) -> Callable[[], float]:
    """How far, in any pass since the last call, the last expert that was chosen came before the first that was not."""
    smallest = [float("inf")]

    def keep(router: nn.Module, args: tuple, _output) -> None:
        logits = F.linear(args[0].detach().flatten(0, -2), router.weight, getattr(router, "bias", None))
        chosen = model.config.num_experts_per_tok
        top = logits.topk(chosen + 1).values
        smallest[0] = min(smallest[0], (top[:, chosen - 1] - top[:, chosen]).min().item())

    if is_mixture(model.config):
        for name, module in model.named_modules():
            if name.endswith((".gate", ".router")):
                module.register_forward_hook(keep)

    def since() -> float:
        found, smallest[0] = smallest[0], float("inf")
        return found

    return since
