"""Writes tests/goldens: tiny random checkpoints and what transformers, PEFT and torch make of them.

usage: make_goldens.py [NAME...]        (without names all families but the extra ones)
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

import peft_adapters
import text
from anatomy import watch_routers
from families import EOS, FAMILIES, LAYERS, Family, build
from families_more import ALL
from reference import MODES, TASKS, Batch, Tables, block_states, greedy, loss, text_logits
from training import consecutive, train

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
PREFIX, LENGTHS, CLASSES = 5, [9, 6, 4], [2, 0, 1]
NEW_TOKENS, PROMPT_TOKENS, SMALLEST_LEAD = 32, 6, 1e-3
# How far the choices of routers must be from a tie, so that rounding never changes one; in curves rounding adds up.
SMALLEST_GAP, SMALLEST_GAP_IN_CURVES = 1e-3, 2e-4


def input_ids() -> Tensor:
    """The token ids [3, 9] on which logits and gradients are recorded, the same for every family."""
    return torch.randint(2, 320, (3, 9), generator=torch.Generator().manual_seed(1))


def initial_tables(seed: int, hidden: int) -> dict[str, Tables]:
    """The tables of each mode, normal(0.3); the modes share P and score."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)
    P, add, replace = normal(PREFIX, hidden), normal(LAYERS, PREFIX, hidden), normal(LAYERS - 1, PREFIX, hidden)
    score = normal(len(text.LABELS), hidden)
    return {mode: Tables(mode, P, Q, score) for mode, Q in zip(MODES, [None, replace, add])}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes the tensors, detached and contiguous, creating the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def save_tables(tables: Tables, path: Path) -> None:
    """The tables under the names that an adapter gives them."""
    names = {"P": "prompt_embeddings", "Q": "intermediate_prompt_embeddings", "score": "score.weight"}
    save_tensors({names[name]: table for name, table in tables.named().items()}, path)


def gradients(model: PreTrainedModel, tables: dict[str, Tables], tensors: dict, scalars: dict) -> None:
    """Loss and gradients of every mode and task on the ragged batch: `loss.*`, `grad.<mode>.<task>.<table>`."""
    batch = Batch(input_ids(), torch.tensor(LENGTHS), torch.ones(3, dtype=torch.long), torch.tensor(CLASSES))
    for mode in MODES:
        for task in TASKS:
            trained = tables[mode].trainable(task)
            value = loss(model, batch, trained, task)
            value.backward()
            scalars[f"loss.{mode}.{task}"] = value.item()
            for name, table in trained.named().items():
                tensors[f"grad.{mode}.{task}.{name}"] = table.grad


def curves(family: Family, model: PreTrainedModel, tables: dict, examples: dict, tensors: dict, scalars: dict) -> None:
    """Losses per step `curve.<mode>.<task>` and last tables `final.<mode>.<task>.<table>`."""
    options = family.curves
    scalars["optimiser"] = dict(vars(options), betas=[0.9, 0.999], eps=1e-8)
    for mode in MODES:
        for task in TASKS:
            batch_at = lambda step: consecutive(examples[task], options.batch_size, step)
            losses, rates, final = train(model, tables[mode], task, batch_at, options)
            scalars[f"curve.{mode}.{task}"] = losses
            scalars["learning_rates"] = rates
            tensors |= {f"final.{mode}.{task}.{name}": table for name, table in final.named().items()}


def generations(model: PreTrainedModel, tokenizer: Tokenizer, tables: dict[str, Tables], scalars: dict) -> None:
    """Greedy tokens without and with each mode's tables, far enough from a tie for any f32 implementation."""
    line = text.CORPUS.strip()
    prompt = next(line[:n] for n in range(len(line)) if len(tokenizer.encode(line[:n]).ids) == PROMPT_TOKENS)
    ids = tokenizer.encode(prompt).ids
    scalars |= {"prompt_text": prompt, "prompt_ids": ids}
    for mode in ("bare", *MODES):
        tokens, lead = greedy(model, ids, tables.get(mode), NEW_TOKENS)
        assert EOS not in tokens and lead > SMALLEST_LEAD, f"{mode}: tie ({lead}) or EOS: take another seed"
        scalars[f"generate.{mode}"] = tokens


def peft(family: Family, out: Path, tables: Tables, tensors: dict) -> None:
    """PEFT's own adapters for the tables of ptune, and the logits they give (kept for the first six families)."""
    rows, model_dir = input_ids().tolist(), out / "model"
    peft_adapters.save_adapter(model_dir, out / "peft-prompt-tuning", "causal-lm", tables.P)
    logits = peft_adapters.adapter_logits(model_dir, out / "peft-prompt-tuning", "causal-lm", rows, None)
    torch.testing.assert_close(logits, tensors["logits.ptune"], rtol=1e-5, atol=1e-5)
    if family in FAMILIES:
        tensors["peft.logits"] = logits
    if family.peft_seq_cls:
        peft_adapters.save_adapter(model_dir, out / "peft-seq-cls", "seq-cls", tables.P, tables.score)
        rows = [row[:length] for row, length in zip(rows, LENGTHS)]
        tensors["peft.seq-cls.logits"] = peft_adapters.adapter_logits(
            model_dir, out / "peft-seq-cls", "seq-cls", rows, len(tables.score)
        )


def assert_decided(gap: float, least: float) -> None:
    assert gap > least, f"a router is {gap} from a tie: take another seed"


def save_model(family: Family, out: Path) -> None:
    """The checkpoint, and where the family has it so, with tensors named as the model without a head names them."""
    model = build(family).to(family.saved_dtype)
    model.save_pretrained(out, max_shard_size=family.shard_size)
    if family.bare_names:
        start = f"{model.base_model_prefix}."
        tensors = load_file(out / "model.safetensors")
        save_file({name.removeprefix(start): tensor for name, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"})


def write_family(family: Family) -> None:
    """Writes everything in GOLDENS/<name>; the README beside this file lists it."""
    out = GOLDENS / family.name
    shutil.rmtree(out, ignore_errors=True)
    model, tokenizer = build(family), text.train_tokenizer(family.bos)
    gap = watch_routers(model)
    save_model(family, out / "model")
    tokenizer.save(str(out / "model" / "tokenizer.json"))

    tables = initial_tables(family.seed, model.config.hidden_size)
    for mode in MODES:
        save_tables(tables[mode], out / f"init-{mode}" / "adapter_model.safetensors")
    lines = {"causal-lm": text.CAUSAL_LINES, "seq-cls": text.CLS_LINES}
    examples = {task: [text.tokenise(tokenizer, line) for line in lines[task]] for task in TASKS}

    ids = input_ids()
    tensors = {"input_ids": ids, "hidden_states": block_states(model, ids), "score": tables["add"].score}
    tensors |= {"P": tables["add"].P, "Q_add": tables["add"].Q, "Q_replace": tables["replace"].Q}
    tensors["logits"] = text_logits(model, ids, None)
    tensors |= {f"logits.{mode}": text_logits(model, ids, tables[mode]) for mode in MODES}
    scalars = {"lengths": LENGTHS, "labels": CLASSES, "label_names": text.LABELS}
    scalars |= {f"tokens.{task}": [vars(example) for example in examples[task]] for task in TASKS}
    gradients(model, tables, tensors, scalars)
    assert_decided(gap(), SMALLEST_GAP)
    if family.curves:
        curves(family, model, tables, examples, tensors, scalars)
        assert_decided(gap(), SMALLEST_GAP_IN_CURVES)
    generations(model, tokenizer, tables, scalars)
    if "prompt-tuning" in family.peft:
        peft(family, out, tables["ptune"], tensors)
    assert_decided(gap(), SMALLEST_GAP)
    torch.testing.assert_close(model(input_ids=ids).logits, tensors["logits"], rtol=1e-5, atol=1e-5)
    save_tensors(tensors, out / "goldens.safetensors")
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in scalars.items())
    (out / "goldens.json").write_text("{\n" + body + "\n}\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    text.write_data(GOLDENS / "data")
    (GOLDENS / "data" / "input_ids.json").write_text(json.dumps(input_ids().tolist()) + "\n")
    for family in ALL:
        if family.name in sys.argv[1:] or not (sys.argv[1:] or family.extra):
            write_family(family)
            print("wrote", family.name, flush=True)


if __name__ == "__main__":
    main()
