"""Training curves with torch's AdamW: the losses and the final tables of a short run."""

from collections.abc import Callable

import torch
from transformers import (
    PreTrainedModel,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from families import Optimiser
from reference import Batch, Tables, loss, pad
from text import Example


def schedule(optimiser: torch.optim.Optimizer, options: Optimiser):
    """transformers' schedule of that name, counted from step 0."""
    if options.schedule == "constant":
        return get_constant_schedule_with_warmup(optimiser, options.warmup)
    make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[options.schedule]
    return make(optimiser, options.warmup, options.steps)


def consecutive(examples: list[Example], batch_size: int, step: int) -> Batch:
    """The batch of step `step` (from 0): consecutive examples in file order, wrapping round."""
    chosen = [examples[(step * batch_size + i) % len(examples)] for i in range(batch_size)]
    labels = None if chosen[0].label is None else [example.label for example in chosen]
    return pad([example.ids for example in chosen], [example.labelled_from for example in chosen], labels)


def train(
    model: PreTrainedModel, initial: Tables, task: str, batch_at: Callable[[int], Batch], options: Optimiser
) -> tuple[list[float], list[float], Tables]:
    """Trains copies of the tables on `batch_at(0)`, `batch_at(1)`, ...; returns losses, learning rates, final tables.

    The loss of a step is taken before its update. Clipping is by the global norm over every trained table.
    """
    tables = initial.trainable(task)
    parameters = list(tables.named().values())
    optimiser = torch.optim.AdamW(
        parameters, lr=options.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=options.weight_decay
    )
    scheduler = schedule(optimiser, options)
    losses, rates = [], []
    for step in range(options.steps):
        optimiser.zero_grad()
        value = loss(model, batch_at(step), tables, task)
        value.backward()
        if options.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
        losses.append(value.item())
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return losses, rates, tables
