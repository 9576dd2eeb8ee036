"""Writes tests/goldens/llama-gqa/shaped.json: runs with label smoothing, class weights and a moving average, by torch alone.

usage: shaped.py        (after make_goldens.py)

Each of `runs` starts from `init-replace` and is made as the family's other curves are, but for `smoothing` and `weights` (of the classes in
order; null without). `losses` are those of the steps, `held_out` the plain loss over the whole data file by the average of the tables
(`decay`) after the last step, and `held_out_of_tables` by the tables themselves.
"""

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import text
from families import FAMILIES
from make_goldens import GOLDENS
from peft_adapters import load_base
from reference import Batch, Tables, class_logits, loss, pad, text_logits
from training import consecutive, schedule

DECAY = 0.8


class Trained(nn.Module):
    """The tables as a module, so that torch can average them."""

    def __init__(self, tables: Tables):
        super().__init__()
        self.P, self.Q = nn.Parameter(tables.P.clone()), nn.Parameter(tables.Q.clone())
        self.score = None if tables.score is None else nn.Parameter(tables.score.clone())

    def tables(self) -> Tables:
        return Tables("replace", self.P, self.Q, self.score)


def shaped(model, batch: Batch, tables: Tables, task: str, smoothing: float, weight: Tensor | None) -> Tensor:
    if task == "seq-cls":
        return F.cross_entropy(class_logits(model, batch, tables), batch.labels, weight=weight, label_smoothing=smoothing)
    logits = text_logits(model, batch.ids, tables)[:, :-1]
    position = torch.arange(1, batch.ids.shape[1])
    labelled = (position >= batch.labelled_from[:, None]) & (position < batch.lengths[:, None])
    return F.cross_entropy(logits[labelled], batch.ids[:, 1:][labelled], label_smoothing=smoothing)


def balanced(labels: list[int]) -> list[float]:
    """scikit-learn's `compute_class_weight("balanced")`."""
    classes = sorted(set(labels))
    return [len(labels) / (len(classes) * labels.count(label)) for label in classes]


def run(model, family, initial: Tables, examples: list, task: str, smoothing: float, weights: list[float] | None) -> dict:
    options, trained = family.curves, Trained(initial)
    optimiser = torch.optim.AdamW(
        trained.parameters(), lr=options.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=options.weight_decay
    )
    averaged = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters(trained)  # the first tables, from where the average begins
    scheduler, losses = schedule(optimiser, options), []
    weight = None if weights is None else torch.tensor(weights)
    for step in range(options.steps):
        optimiser.zero_grad()
        batch = consecutive(examples, options.batch_size, step)
        value = shaped(model, batch, trained.tables(), task, smoothing, weight)
        value.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), options.clip)
        losses.append(value.item())
        optimiser.step()
        averaged.update_parameters(trained)
        scheduler.step()
    labels = None if examples[0].label is None else [example.label for example in examples]
    whole = pad([example.ids for example in examples], [example.labelled_from for example in examples], labels)
    with torch.no_grad():
        held_out = loss(model, whole, averaged.module.tables(), task).item()
        of_tables = loss(model, whole, trained.tables(), task).item()
    return {
        "task": task,
        "smoothing": smoothing,
        "weights": weights,
        "losses": losses,
        "held_out": held_out,
        "held_out_of_tables": of_tables,
    }


def main() -> None:
    torch.set_num_threads(1)
    family = next(family for family in FAMILIES if family.name == "llama-gqa")
    model = load_base(GOLDENS / family.name / "model", "causal-lm").requires_grad_(False)
    tokenizer = text.train_tokenizer(family.bos)
    start = load_file(GOLDENS / family.name / "init-replace" / "adapter_model.safetensors")
    P, Q = start["prompt_embeddings"], start["intermediate_prompt_embeddings"]
    classes = [text.tokenise(tokenizer, line) for line in text.CLS_LINES]
    tokens = [text.tokenise(tokenizer, line) for line in text.CAUSAL_LINES]
    weights = balanced([example.label for example in classes])
    with_score, without = Tables("replace", P, Q, start["score.weight"]), Tables("replace", P, Q)
    runs = [
        run(model, family, with_score, classes, "seq-cls", 0.1, weights),
        run(model, family, with_score, classes, "seq-cls", 0.0, [0.25, 1.0, 3.0]),
        run(model, family, without, tokens, "causal-lm", 0.2, None),
    ]
    out = GOLDENS / family.name / "shaped.json"
    body = ",\n".join(f"  {json.dumps(one)}" for one in runs)
    out.write_text(f'{{"decay": {DECAY}, "runs": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
