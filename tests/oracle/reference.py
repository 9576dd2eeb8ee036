"""Prompt tuning written on Hugging Face's own modules and torch's autograd: what the Rust code must agree with.

Shapes: B rows, S text tokens, m prefix rows, d hidden size, L blocks, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from anatomy import blocks, body, head

MODES = ("ptune", "replace", "add")
TASKS = ("causal-lm", "seq-cls")


@dataclass
class Tables:
    """What is trained: `P` [m, d]; `Q` [L-1, m, d] to replace or [L, m, d] to add; `score` [labels, d]."""

    mode: str
    P: Tensor
    Q: Tensor | None = None
    score: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The tables that are present, by name."""
        tables = {"P": self.P, "Q": self.Q, "score": self.score}
        return {name: table for name, table in tables.items() if table is not None}

    def trainable(self, task: str) -> "Tables":
        """A copy whose tables are leaves with gradients; without the score head unless the task reads it."""
        copy = {name: table.detach().clone().requires_grad_() for name, table in self.named().items()}
        if task == "causal-lm":
            copy.pop("score", None)
        return replace(self, **{"Q": None, "score": None, **copy})


@dataclass
class Batch:
    """Right-padded rows: `ids` [B, S]; `lengths`, `labelled_from` and `labels` [B] (labels for seq-cls only)."""

    ids: Tensor
    lengths: Tensor
    labelled_from: Tensor
    labels: Tensor | None = None


def pad(rows: list[list[int]], labelled_from: list[int], labels: list[int] | None = None) -> Batch:
    """Rows of token ids as a right-padded batch (pads are zeros and never matter)."""
    longest = max(map(len, rows))
    return Batch(
        ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        labelled_from=torch.tensor(labelled_from),
        labels=None if labels is None else torch.tensor(labels),
    )


@contextmanager
def injected(model: PreTrainedModel, tables: Tables) -> Iterator[None]:
    """While open, every block's first m input rows are replaced by, or get added, the rows of Q meant for it."""

    def hook(rows: Tensor):
        def before_block(_block, args, kwargs):
            hidden = args[0]
            prefix, text = hidden[:, : len(rows)], hidden[:, len(rows) :]
            changed = prefix + rows if tables.mode == "add" else rows.expand_as(prefix)
            return (torch.cat([changed, text], dim=1), *args[1:]), kwargs

        return before_block

    prompts = [] if tables.Q is None else list(tables.Q)
    prompted = blocks(model)[len(blocks(model)) - len(prompts) :]
    handles = [
        block.register_forward_pre_hook(hook(rows), with_kwargs=True) for block, rows in zip(prompted, prompts)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def text_states(model: PreTrainedModel, ids: Tensor, tables: Tables | None) -> Tensor:
    """Final-normed hidden states of the text, [B, S, d]. The prefix takes positions 0..m, the text follows.

    P goes in beside the text's embeddings, so that what the model does to embeddings before its first block happens to
    it too. Every position is attended to: rows are padded at their ends, where no real token looks.
    """
    embeds = model.get_input_embeddings()(ids)
    if tables is None:
        return body(model)(inputs_embeds=embeds, attention_mask=ones(embeds), use_cache=False).last_hidden_state
    embeds = torch.cat([tables.P.expand(len(ids), -1, -1), embeds], dim=1)
    with injected(model, tables):
        out = body(model)(inputs_embeds=embeds, attention_mask=ones(embeds), use_cache=False)
    return out.last_hidden_state[:, len(tables.P) :]


def ones(embeds: Tensor) -> Tensor:
    """The attention mask [B, S] of embeddings that all count."""
    return torch.ones(embeds.shape[:2], dtype=torch.long)


def text_logits(model: PreTrainedModel, ids: Tensor, tables: Tables | None) -> Tensor:
    """Next-token logits at the text positions, [B, S, V]."""
    return head(model, text_states(model, ids, tables))


def class_logits(model: PreTrainedModel, batch: Batch, tables: Tables) -> Tensor:
    """Class logits read at the last real token of each row, [B, labels]."""
    states = text_states(model, batch.ids, tables)
    return states[torch.arange(len(states)), batch.lengths - 1] @ tables.score.T


def loss(model: PreTrainedModel, batch: Batch, tables: Tables, task: str) -> Tensor:
    """The loss of a batch, a scalar.

    seq-cls: mean cross-entropy over rows. causal-lm: mean cross-entropy over labelled tokens, token t predicted from
    t - 1; a row's first token, tokens before `labelled_from` and pads are not labels.
    """
    if task == "seq-cls":
        return F.cross_entropy(class_logits(model, batch, tables), batch.labels)
    logits = text_logits(model, batch.ids, tables)[:, :-1]
    position = torch.arange(1, batch.ids.shape[1])
    labelled = (position >= batch.labelled_from[:, None]) & (position < batch.lengths[:, None])
    return F.cross_entropy(logits[labelled], batch.ids[:, 1:][labelled])


@torch.no_grad()
def block_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Input of block 0 to output of the last block, before the final norm, without a prefix: [L+1, B, S, d]."""
    states = []
    first = lambda _block, args: states.append(args[0])
    keep = lambda _block, _args, output: states.append(output[0] if isinstance(output, tuple) else output)
    handles = [blocks(model)[0].register_forward_pre_hook(first)]
    handles += [block.register_forward_hook(keep) for block in blocks(model)]
    body(model)(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(states)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], tables: Tables | None, count: int) -> tuple[list[int], float]:
    """`count` greedy tokens after the prompt (EOS does not stop), and the smallest lead of a winner over the next."""
    ids, margin = list(prompt), float("inf")
    for _ in range(count):
        top = text_logits(model, torch.tensor([ids]), tables)[0, -1].topk(2)
        margin = min(margin, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[len(prompt) :], margin
