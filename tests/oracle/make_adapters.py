"""Writes tests/goldens/FAMILY/adapters: adapters of every kind as PEFT saves them, and what PEFT and torch make of them.

usage: make_adapters.py [FAMILY...]        (without names all but the extra ones; after make_goldens.py)

For each kind of the family: `peft-<kind>/` as PEFT saves it (where PEFT has it), and in goldens.safetensors
  tables.<kind>        the blocks' tables as they travel, [L, values]: what is in front of the text first, then for each
                       module lora_A [r, in] and lora_B transposed and times alpha / r [r, out], or ia3_l
  logits.<kind>        next-token logits at the text, [3, 9, V]
  grad.<kind>.<task>   the loss's gradient by those tables
with `loss.<kind>.<task>` and, for families with curves, `curve.<kind>.<task>` in goldens.json. Beside those, for families
that came after the first six, goldens.json has `kinds`, `modules` (that LoRA changes) and `scaled` (that IA3 scales); the
first six have all of KINDS, MODULES and k, v and down. `logits.peft-lora` is what PEFT makes of a `peft-lora` whose
modules are fused ones.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache

import text
from anatomy import Site, blocks, body, head, head_dim, scaled, sites, watch_routers
from families import FAMILIES, LAYERS, Family
from families_more import ALL
from make_goldens import (
    CLASSES,
    GOLDENS,
    LENGTHS,
    SMALLEST_GAP,
    SMALLEST_GAP_IN_CURVES,
    assert_decided,
    initial_tables,
    input_ids,
)
from peft_adapters import load_base
from peft_changes import ALPHA, RANK, loaded_logits, save_fused_lora, save_peft
from reference import TASKS, Batch, Tables, injected, ones
from training import consecutive, schedule

ROWS = 5
CURVES = ("lora", "ia3", "prefix")


class Adapted:
    """A base with an adapter of one kind: what is trained, and the hidden states that come of it.

    `parameters` has `<block>.<module>.lora_A` [r, in], `.lora_B` [out, r] and `.ia3_l`, and the tables in front of the
    text. Each module has its own, whether or not the checkpoint computes it together with others.
    """

    def __init__(self, family: Family, kind: str, dtype: torch.dtype):
        self.kind = kind
        self.base = load_base(GOLDENS / family.name / "model", "causal-lm").requires_grad_(False).to(dtype)
        self.config = self.base.config
        self.gap = watch_routers(self.base)
        self.head_dim = head_dim(self.config)
        self.sites, self.scaled = sites(self.config), scaled(self.config)
        generator = torch.Generator().manual_seed(family.seed + 7)
        normal = lambda *shape: torch.randn(*shape, generator=generator)
        self.parameters: dict[str, Tensor] = {}
        for block in range(LAYERS):
            for name in self.sites:
                for part, shape in self.shapes(block, name):
                    value = (1.0 if part == "ia3_l" else 0.0) + 0.2 * normal(*shape)
                    self.parameters[f"{block}.{name}.{part}"] = value.to(dtype).requires_grad_()
                self.change(block, name)
        self.heads = self.size(0, "k")[1] // self.head_dim
        self.prefix = None
        if "prefix" in kind:
            self.prefix = 0.5 * normal(ROWS, LAYERS * 2 * self.heads * self.head_dim).to(dtype)
        tables = initial_tables(family.seed, self.config.hidden_size)
        self.tables = None
        if "replace" in kind:
            P, Q = tables["replace"].P.to(dtype), tables["replace"].Q.to(dtype)
            self.tables = Tables("replace", P, Q).trainable("causal-lm")
        self.score = tables["add"].score.to(dtype).requires_grad_()
        if self.prefix is not None:
            self.parameters["prefix"] = self.prefix.requires_grad_()
        if self.tables is not None:
            self.parameters |= {"P": self.tables.P, "Q": self.tables.Q}

    def projection(self, block: int, name: str) -> nn.Module:
        return blocks(self.base)[block].get_submodule(self.sites[name].path)

    def size(self, block: int, name: str) -> tuple[int, int]:
        """How many values go into a module and come out of it."""
        outputs, inputs = self.projection(block, name).weight.shape
        rows = self.sites[name].rows
        return inputs, outputs if rows is None else len(rows)

    def shapes(self, block: int, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What is trained for a module."""
        inputs, outputs = self.size(block, name)
        if "lora" in self.kind:
            yield "lora_A", (RANK, inputs)
            yield "lora_B", (outputs, RANK)
        if "ia3" in self.kind and name in self.scaled:
            yield "ia3_l", (inputs if name == "down" else outputs,)

    def change(self, block: int, name: str) -> None:
        """Adds the low-rank product to the module's outputs, or scales those (of down: its inputs)."""
        start, site, projection = f"{block}.{name}.", self.sites[name], self.projection(block, name)
        if "lora" in self.kind:
            A, B = self.parameters[f"{start}lora_A"], self.parameters[f"{start}lora_B"]
            product = lambda x: F.linear(F.linear(x, A), B) * (ALPHA / RANK)
            projection.register_forward_hook(lambda _, args, output: output + spread(product(args[0]), site, output))
        elif f"{start}ia3_l" in self.parameters:
            scales = self.parameters[f"{start}ia3_l"]
            if name == "down":
                projection.register_forward_pre_hook(lambda _, args: (args[0] * scales, *args[1:]))
            else:
                projection.register_forward_hook(lambda _, args, output: output * scales_of(scales, site, output))

    def cache(self, rows: int) -> DynamicCache | None:
        """The prefix's keys and values, laid out as PEFT's PrefixEncoder does, in the cache that PEFT makes of them."""
        if self.prefix is None:
            return None
        past = self.prefix.view(ROWS, LAYERS * 2, self.heads, self.head_dim).permute(1, 2, 0, 3)
        if self.config.model_type == "falcon" and self.config.new_decoder_architecture:
            # This Falcon repeats keys and values for the heads of their group before it caches them.
            past = past.repeat_interleave(self.config.num_attention_heads // self.heads, dim=1)
        past = past.unsqueeze(1).expand(-1, rows, -1, -1, -1)
        return DynamicCache.from_legacy_cache(tuple((past[2 * n], past[2 * n + 1]) for n in range(LAYERS)))

    def states(self, ids: Tensor) -> Tensor:
        """Final-normed hidden states of the text, [B, S, d]."""
        embeds = self.base.get_input_embeddings()(ids)
        with_prefix = lambda rows: torch.cat([rows.expand(len(ids), -1, -1), embeds], dim=1)
        if self.tables is not None:
            with injected(self.base, self.tables):
                inputs = with_prefix(self.tables.P)
                out = body(self.base)(inputs_embeds=inputs, attention_mask=ones(inputs), use_cache=False)
            return out.last_hidden_state[:, ROWS:]
        cache = self.cache(len(ids))
        seen = embeds if cache is None else with_prefix(embeds[:1, :1].expand(1, ROWS, -1))
        return body(self.base)(
            inputs_embeds=embeds, attention_mask=ones(seen), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    def loss(self, batch: Batch, task: str) -> Tensor:
        """As reference.loss."""
        states = self.states(batch.ids)
        if task == "seq-cls":
            return F.cross_entropy(states[torch.arange(len(states)), batch.lengths - 1] @ self.score.T, batch.labels)
        logits = head(self.base, states)[:, :-1]
        position = torch.arange(1, batch.ids.shape[1])
        labelled = (position >= batch.labelled_from[:, None]) & (position < batch.lengths[:, None])
        return F.cross_entropy(logits[labelled], batch.ids[:, 1:][labelled])

    def trained(self, task: str) -> list[Tensor]:
        return [*self.parameters.values(), *([self.score] if task == "seq-cls" else [])]

    def travelling(self, value) -> Tensor:
        """The blocks' tables as they travel, of values or, where `value` gives those, of gradients."""
        tables = []
        for block in range(LAYERS):
            parts = []
            if self.tables is not None:
                parts.append(value(self.tables.P) if block == 0 else value(self.tables.Q)[block - 1])
            if self.prefix is not None:
                parts.append(value(self.prefix).view(ROWS, LAYERS, -1)[:, block])
            parts += self.of_weights(block, value)
            tables.append(torch.cat([part.reshape(-1) for part in parts]))
        return torch.stack(tables).detach()

    def of_weights(self, block: int, value) -> Iterator[Tensor]:
        for name in self.sites:
            start = f"{block}.{name}."
            if "lora" in self.kind:
                # By the chain rule a gradient is divided where the value is multiplied.
                factor = ALPHA / RANK if value is values else RANK / ALPHA
                yield value(self.parameters[f"{start}lora_A"])
                yield value(self.parameters[f"{start}lora_B"]).T * factor
            elif f"{start}ia3_l" in self.parameters:
                yield value(self.parameters[f"{start}ia3_l"])


def spread(part: Tensor, site: Site, output: Tensor) -> Tensor:
    """A module's values at its places among the outputs of its projection, zeros elsewhere."""
    if site.rows is None:
        return part
    return part.new_zeros(*part.shape[:-1], output.shape[-1]).index_copy(-1, site.rows, part)


def scales_of(scales: Tensor, site: Site, output: Tensor) -> Tensor:
    """A module's scales at its places among the outputs of its projection, ones elsewhere."""
    if site.rows is None:
        return scales
    return scales.new_ones(output.shape[-1]).index_copy(0, site.rows, scales)


def values(parameter: Tensor) -> Tensor:
    return parameter


def gradient(parameter: Tensor) -> Tensor:
    return parameter.grad


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
    assert_decided(adapted.gap(), SMALLEST_GAP_IN_CURVES)
    return losses


def with_peft(family: Family, adapted: Adapted, out: Path, tensors: dict[str, Tensor]) -> None:
    """The kind's folder as PEFT writes it, whose logits as PEFT loads it are those of the kind, unless modules are fused."""
    kind, model = adapted.kind, GOLDENS / family.name / "model"
    if kind == "lora" and any(site.rows is not None for site in adapted.sites.values()):
        save_fused_lora(adapted, model, out, family.seed)
        tensors["logits.peft-lora"] = loaded_logits(model, out, input_ids())
        return
    if kind == "ia3" and any(adapted.sites[name].rows is not None for name in adapted.scaled):
        return
    save_peft(adapted, model, out)
    logits = loaded_logits(model, out, input_ids())
    torch.testing.assert_close(logits, tensors[f"logits.{kind}"].float(), rtol=1e-4, atol=1e-4)


def write_family(family: Family) -> None:
    out = GOLDENS / family.name / "adapters"
    shutil.rmtree(out, ignore_errors=True)
    tensors, scalars = {}, {"rows": ROWS, "rank": RANK, "alpha": ALPHA}
    batch = Batch(input_ids(), torch.tensor(LENGTHS), torch.ones(3, dtype=torch.long), torch.tensor(CLASSES))
    tokenizer = text.train_tokenizer(family.bos)
    lines = {"causal-lm": text.CAUSAL_LINES, "seq-cls": text.CLS_LINES}
    examples = {task: [text.tokenise(tokenizer, line) for line in lines[task]] for task in TASKS}
    for kind in family.kinds:
        # What is between blocks is in f64, so that what differs is our rounding alone.
        adapted = Adapted(family, kind, torch.float64)
        if family not in FAMILIES:
            scalars |= {"kinds": family.kinds, "modules": list(adapted.sites), "scaled": adapted.scaled}
        tensors[f"tables.{kind}"] = adapted.travelling(values)
        with torch.no_grad():
            tensors[f"logits.{kind}"] = head(adapted.base, adapted.states(input_ids()))
        for task in TASKS:
            for parameter in adapted.trained("seq-cls"):
                parameter.grad = None
            value = adapted.loss(batch, task)
            value.backward()
            scalars[f"loss.{kind}.{task}"] = value.item()
            tensors[f"grad.{kind}.{task}"] = adapted.travelling(gradient)
        assert_decided(adapted.gap(), SMALLEST_GAP)
        if kind in family.peft:
            with_peft(family, adapted, out / f"peft-{kind}", tensors)
        if family.curves and kind in CURVES:
            for task in TASKS:
                scalars[f"curve.{kind}.{task}"] = curve(family, kind, task, examples[task])
    save_file({name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}, out / "goldens.safetensors")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in scalars.items())
    (out / "goldens.json").write_text("{\n" + lines + "\n}\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for family in ALL:
        if family.name in sys.argv[1:] or not (sys.argv[1:] or family.extra):
            write_family(family)
            print("wrote", family.name, flush=True)


if __name__ == "__main__":
    main()
