"""Tunes prompts on the demo model in plain torch and prints what a swarm should reach.

usage: check.py [--steps N] [--prefix-len N] [--lr X] [--persona-lr X] [--seed N]

Classification: deep prompts that replace, accuracy on held-out reviews before and after. Persona: shallow prompts,
greedy answers before and after. Both on batches of consecutive lines in file order.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))

from families import Optimiser  # noqa: E402
from reference import Tables, class_logits, loss, pad, text_logits  # noqa: E402
from text import Example  # noqa: E402
from training import consecutive, train  # noqa: E402

BATCH, EOS = 16, 1
QUESTIONS = ["Q: Where is the barrel? A:", "Q: What does the wolf eat? A:", "Q: What is the capital of Kenya? A:"]


def examples(tokenizer: Tokenizer, file: Path) -> list[Example]:
    """The records of a data file as tokens; a completion is closed by EOS."""
    found = []
    for record in map(json.loads, file.read_text().splitlines()):
        if "prompt" in record:
            prompt = tokenizer.encode(record["prompt"]).ids
            completion = tokenizer.encode(record["completion"], add_special_tokens=False).ids
            found.append(Example(prompt + completion + [EOS], len(prompt)))
        else:
            found.append(Example(tokenizer.encode(record["text"]).ids, 1, int(record["label"] == "positive")))
    return found


def tables(model: PreTrainedModel, mode: str, prefix: int, labels: int, seed: int) -> Tables:
    """P [m, d] and, for `replace`, Q [L-1, m, d] from normal(0.02); score [labels, d] zero."""
    generator = torch.Generator().manual_seed(seed)
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    normal = lambda *shape: 0.02 * torch.randn(*shape, generator=generator)
    Q = normal(layers - 1, prefix, hidden) if mode == "replace" else None
    return Tables(mode, normal(prefix, hidden), Q, torch.zeros(labels, hidden))


@torch.no_grad()
def accuracy(model: PreTrainedModel, rows: list[Example], tuned: Tables) -> float:
    """Share of rows whose highest class logit is their label."""
    batch = pad([row.ids for row in rows], [1] * len(rows), [row.label for row in rows])
    return (class_logits(model, batch, tuned).argmax(-1) == batch.labels).float().mean().item()


@torch.no_grad()
def answer(model: PreTrainedModel, tokenizer: Tokenizer, question: str, tuned: Tables | None) -> str:
    """The greedy continuation of a question up to EOS, at most 24 tokens."""
    ids = tokenizer.encode(question).ids
    start = len(ids)
    while len(ids) < start + 24:
        token = text_logits(model, torch.tensor([ids]), tuned)[0, -1].argmax().item()
        if token == EOS:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prefix-len", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--persona-lr", type=float, default=3e-2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "model", dtype=torch.float32).requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(ROOT / "demo" / "model" / "tokenizer.json"))
    data = lambda name: examples(tokenizer, ROOT / "demo" / "data" / f"{name}.jsonl")

    rows, held_out = data("reviews-train"), data("reviews-eval")
    options = Optimiser("linear", args.lr, 0.0, 1.0, 5, args.steps, BATCH)
    initial = tables(model, "replace", args.prefix_len, 2, args.seed)
    print(f"longest review: {max(len(row.ids) for row in rows + held_out)} tokens")
    print(f"reviews, before: accuracy {accuracy(model, held_out, initial):.3f}")
    losses, _, tuned = train(model, initial, "seq-cls", lambda step: consecutive(rows, BATCH, step), options)
    print("loss every 10 steps:", *(f"{value:.3f}" for value in losses[::10]))
    print(f"reviews, after {args.steps} steps: accuracy {accuracy(model, held_out, tuned):.3f}")
    head_alone = Tables("replace", initial.P, initial.Q, tuned.score)
    print(f"reviews, the trained head on the initial prompts: accuracy {accuracy(model, held_out, head_alone):.3f}")

    rows, held_out = data("persona-train"), data("persona-eval")
    options = Optimiser("linear", args.persona_lr, 0.0, 1.0, 5, args.steps, BATCH)
    initial = tables(model, "ptune", args.prefix_len, 0, args.seed)
    whole = pad([row.ids for row in held_out], [row.labelled_from for row in held_out])
    print(f"\npersona, before: loss {loss(model, whole, initial, 'causal-lm').item():.3f}")
    losses, _, tuned = train(model, initial, "causal-lm", lambda step: consecutive(rows, BATCH, step), options)
    print("loss every 10 steps:", *(f"{value:.3f}" for value in losses[::10]))
    print(f"persona, after: loss {loss(model, whole, tuned, 'causal-lm').item():.3f}")
    for question in QUESTIONS:
        for when, table in [("before", None), ("after", tuned)]:
            print(f"{question} [{when}]{answer(model, tokenizer, question, table)}")


if __name__ == "__main__":
    main()
