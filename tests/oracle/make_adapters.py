"""Writes tests/goldens/FAMILY/adapters: adapters of every kind as PEFT saves them, and what PEFT and torch make of them.

usage: make_adapters.py [FAMILY...]        (all families without names; after make_goldens.py)

For each kind: `peft-<kind>/` as PEFT saves it (kinds that PEFT does not have: none), and in goldens.safetensors
  tables.<kind>        the blocks' tables as they travel, [L, values]: what is in front of the text first, then for each
                       matrix lora_A [r, in] and lora_B transposed and times alpha / r [r, out], or ia3_l
  logits.<kind>        next-token logits at the text, [3, 9, V]
  grad.<kind>.<task>   the loss's gradient by those tables
with `loss.<kind>.<task>` and, for families with curves, `curve.<kind>.<task>` in goldens.json.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

import text
from families import FAMILIES, LAYERS, Family
from make_goldens import CLASSES, GOLDENS, LENGTHS, input_ids, initial_tables
from peft_adapters import load_base
from reference import TASKS, Batch, Tables, injected
from training import consecutive, schedule

ROWS, RANK, ALPHA = 5, 3, 5
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = ("lora", "ia3", "prefix", "replace+lora", "prefix+ia3")
CURVES = ("lora", "ia3", "prefix")


def parent(module: str) -> str:
    return "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"


class Adapted:
    """A base with an adapter of one kind: what is trained, and the hidden states that come of it."""

    def __init__(self, family: Family, kind: str, dtype: torch.dtype):
        self.kind = kind
        base = load_base(GOLDENS / family.name / "model", "causal-lm")
        self.config = base.config
        self.head_dim = getattr(base.config, "head_dim", None) or base.config.hidden_size // base.config.num_attention_heads
        self.peft, self.base = None, base
        if "lora" in kind:
            config = LoraConfig(
                task_type=TaskType.CAUSAL_LM, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=MODULES
            )
            self.peft = get_peft_model(base, config)
        if "ia3" in kind:
            config = IA3Config(
                task_type=TaskType.CAUSAL_LM,
                target_modules=["k_proj", "v_proj", "down_proj"],
                feedforward_modules=["down_proj"],
            )
            self.peft = get_peft_model(base, config)
        if self.peft is not None:
            self.base = self.peft.base_model.model
        generator = torch.Generator().manual_seed(family.seed + 7)
        normal = lambda *shape: torch.randn(*shape, generator=generator)
        self.base.requires_grad_(False).to(dtype)
        self.parameters: dict[str, Tensor] = {}
        for name, parameter in self.base.named_parameters():
            if "lora_" in name or "ia3_" in name:
                with torch.no_grad():
                    parameter.copy_((1.0 if "ia3_" in name else 0.0) + 0.2 * normal(*parameter.shape))
                self.parameters[name] = parameter.requires_grad_()
        key = base.config.num_key_value_heads * self.head_dim
        self.prefix = 0.5 * normal(ROWS, LAYERS * 2 * key).to(dtype) if "prefix" in kind else None
        tables = initial_tables(family.seed, base.config.hidden_size)
        self.tables = None
        if "replace" in kind:
            P, Q = tables["replace"].P.to(dtype), tables["replace"].Q.to(dtype)
            self.tables = Tables("replace", P, Q).trainable("causal-lm")
        self.score = tables["add"].score.to(dtype).requires_grad_()
        if self.prefix is not None:
            self.parameters["prefix"] = self.prefix.requires_grad_()
        if self.tables is not None:
            self.parameters |= {"P": self.tables.P, "Q": self.tables.Q}

    def cache(self, rows: int) -> DynamicCache | None:
        """The prefix's keys and values, laid out as PEFT's PrefixEncoder does."""
        if self.prefix is None:
            return None
        heads = self.config.num_key_value_heads
        past = self.prefix.view(ROWS, LAYERS * 2, heads, self.head_dim).permute(1, 2, 0, 3)
        past = past.unsqueeze(1).expand(-1, rows, -1, -1, -1)
        return DynamicCache.from_legacy_cache(tuple((past[2 * n], past[2 * n + 1]) for n in range(LAYERS)))

    def states(self, ids: Tensor) -> Tensor:
        """Final-normed hidden states of the text, [B, S, d]."""
        embeds = self.base.get_input_embeddings()(ids)
        if self.tables is not None:
            prefix = self.tables.P.expand(len(ids), -1, -1)
            with injected(self.base, self.tables):
                out = self.base.model(inputs_embeds=torch.cat([prefix, embeds], dim=1), use_cache=False)
            return out.last_hidden_state[:, ROWS:]
        cache = self.cache(len(ids))
        return self.base.model(inputs_embeds=embeds, past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def loss(self, batch: Batch, task: str) -> Tensor:
        """As reference.loss."""
        states = self.states(batch.ids)
        if task == "seq-cls":
            return F.cross_entropy(states[torch.arange(len(states)), batch.lengths - 1] @ self.score.T, batch.labels)
        logits = self.base.lm_head(states)[:, :-1]
        position = torch.arange(1, batch.ids.shape[1])
        labelled = (position >= batch.labelled_from[:, None]) & (position < batch.lengths[:, None])
        return F.cross_entropy(logits[labelled], batch.ids[:, 1:][labelled])

    def trained(self, task: str) -> list[Tensor]:
        return [*self.parameters.values(), *([self.score] if task == "seq-cls" else [])]

    def travelling(self, value) -> Tensor:
        """The blocks' tables as they travel, of values or, where `value` gives those, of gradients."""
        blocks = []
        for block in range(LAYERS):
            parts = []
            if self.tables is not None:
                parts.append(value(self.tables.P) if block == 0 else value(self.tables.Q)[block - 1])
            if self.prefix is not None:
                parts.append(value(self.prefix).view(ROWS, LAYERS, -1)[:, block])
            parts += self.of_weights(block, value)
            blocks.append(torch.cat([part.reshape(-1) for part in parts]))
        return torch.stack(blocks).detach()

    def of_weights(self, block: int, value) -> Iterator[Tensor]:
        for module in MODULES:
            path = f"model.layers.{block}.{parent(module)}.{module}"
            if "lora" in self.kind:
                a, b = (self.parameters[f"{path}.lora_{part}.default.weight"] for part in "AB")
                # By the chain rule a gradient is divided where the value is multiplied.
                factor = ALPHA / RANK if value is values else RANK / ALPHA
                yield value(a)
                yield value(b).T * factor
            elif f"{path}.ia3_l.default" in self.parameters:
                yield value(self.parameters[f"{path}.ia3_l.default"])


def values(parameter: Tensor) -> Tensor:
    return parameter


def gradient(parameter: Tensor) -> Tensor:
    return parameter.grad


def save_peft(family: Family, adapted: Adapted, out: Path) -> None:
    """The adapter as PEFT saves it, with a score head beside it for runs that classify."""
    peft = adapted.peft
    if adapted.kind == "prefix":
        heads = adapted.config.num_key_value_heads
        config = PrefixTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=ROWS,
            token_dim=heads * adapted.head_dim,
            num_attention_heads=heads,
        )
        peft = get_peft_model(load_base(GOLDENS / family.name / "model", "causal-lm"), config)
        with torch.no_grad():
            peft.prompt_encoder["default"].embedding.weight.copy_(adapted.prefix)
    peft.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    saved = json.loads(file.read_text()) | {"base_model_name_or_path": "../../model"}
    saved |= {key: sorted(saved[key]) for key in ("target_modules", "feedforward_modules") if saved.get(key)}
    file.write_text(json.dumps(saved, indent=2) + "\n")
    tensors = load_file(out / "adapter_model.safetensors") | {"score.weight": adapted.score.detach()}
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})


@torch.no_grad()
def loaded_logits(family: Family, out: Path) -> Tensor:
    peft = PeftModel.from_pretrained(load_base(GOLDENS / family.name / "model", "causal-lm"), out).eval()
    ids = input_ids()
    return peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]


def curve(family: Family, kind: str, task: str, examples: list) -> list[float]:
    """Losses of a run as training.train has them."""
    options, adapted = family.curves, Adapted(family, kind, torch.float32)
    parameters = adapted.trained(task)
    optimiser = torch.optim.AdamW(
        parameters, lr=options.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=options.weight_decay
    )
    scheduler, losses = schedule(optimiser, options), []
    for step in range(options.steps):
        optimiser.zero_grad()
        value = adapted.loss(consecutive(examples, options.batch_size, step), task)
        value.backward()
        if options.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
        losses.append(value.item())
        optimiser.step()
        scheduler.step()
    return losses


def write_family(family: Family) -> None:
    out = GOLDENS / family.name / "adapters"
    shutil.rmtree(out, ignore_errors=True)
    tensors, scalars = {}, {"rows": ROWS, "rank": RANK, "alpha": ALPHA}
    batch = Batch(input_ids(), torch.tensor(LENGTHS), torch.ones(3, dtype=torch.long), torch.tensor(CLASSES))
    tokenizer = text.train_tokenizer(family.bos)
    lines = {"causal-lm": text.CAUSAL_LINES, "seq-cls": text.CLS_LINES}
    examples = {task: [text.tokenise(tokenizer, line) for line in lines[task]] for task in TASKS}
    for kind in KINDS:
        # What is between blocks is in f64, so that what differs is our rounding alone.
        adapted = Adapted(family, kind, torch.float64)
        tensors[f"tables.{kind}"] = adapted.travelling(values)
        with torch.no_grad():
            tensors[f"logits.{kind}"] = adapted.base.lm_head(adapted.states(input_ids()))
        for task in TASKS:
            for parameter in adapted.trained("seq-cls"):
                parameter.grad = None
            value = adapted.loss(batch, task)
            value.backward()
            scalars[f"loss.{kind}.{task}"] = value.item()
            tensors[f"grad.{kind}.{task}"] = adapted.travelling(gradient)
        if "+" not in kind:
            save_peft(family, adapted, out / f"peft-{kind}")
            logits = loaded_logits(family, out / f"peft-{kind}")
            torch.testing.assert_close(logits, tensors[f"logits.{kind}"].float(), rtol=1e-4, atol=1e-4)
        if family.curves and kind in CURVES:
            for task in TASKS:
                scalars[f"curve.{kind}.{task}"] = curve(family, kind, task, examples[task])
    save_file({name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}, out / "goldens.safetensors")
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in scalars.items())
    (out / "goldens.json").write_text("{\n" + body + "\n}\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    chosen = sys.argv[1:] or [family.name for family in FAMILIES]
    for family in FAMILIES:
        if family.name in chosen:
            write_family(family)
            print("wrote", family.name, flush=True)


if __name__ == "__main__":
    main()
