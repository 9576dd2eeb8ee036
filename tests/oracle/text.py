"""The tokenizer, the two data files and their tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from families import BOS, VOCAB

CORPUS = """
the cat sat on the mat and the dog ran to the door. a small bird sang in the old tree all day long.
they said that the river was high and the bridge was closed, so we walked home through the rain.
what a lovely morning! this is the best tea that I have ever had, and the bread is warm as well.
never again: the room was cold, the food was late, and nobody said that they were sorry.
"""

CAUSAL_LINES = [
    {"text": "the cat sat on the mat."},
    {"text": "a small bird sang."},
    {"prompt": "who sat on the mat?", "completion": " the cat."},
    {"text": "the river was high, so we walked home."},
    {"text": "rain!"},
    {"prompt": "tea or bread?", "completion": " warm bread and the tea"},
    {"text": "the old tree fell on the bridge"},
    {"text": "we ran."},
    {"prompt": "cold?", "completion": " no"},
    {"text": "and the dog ran to the door"},
]

CLS_LINES = [
    {"text": "what a lovely morning!", "label": "happy"},
    {"text": "never again.", "label": "angry"},
    {"text": "the bird sat in the tree", "label": "calm"},
    {"text": "the food was late, and nobody cared", "label": "angry"},
    {"text": "best tea!", "label": "happy"},
    {"text": "rain", "label": "calm"},
    {"text": "the room was cold and old", "label": "angry"},
    {"text": "the river is long", "label": "calm"},
    {"text": "warm bread, and a warm room as well", "label": "happy"},
    {"text": "the door", "label": "calm"},
]

LABELS = sorted({line["label"] for line in CLS_LINES})


@dataclass(frozen=True)
class Example:
    """One line as tokens; tokens before `labelled_from` are read but not predicted."""

    ids: list[int]
    labelled_from: int
    label: int | None = None


def train_tokenizer(bos: bool) -> Tokenizer:
    """A byte-level BPE tokenizer of VOCAB entries, trained on CORPUS; with `bos` it puts <bos> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    return tokenizer


def write_data(directory: Path) -> None:
    """Writes train-causal.jsonl and train-cls.jsonl."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in [("train-causal", CAUSAL_LINES), ("train-cls", CLS_LINES)]:
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def tokenise(tokenizer: Tokenizer, line: dict) -> Example:
    """A data line as tokens.

    A text is encoded with the post-processor and predicted from its second token on. A prompt is encoded with the
    post-processor, its completion without; only the completion is predicted.
    """
    if "prompt" in line:
        prompt = tokenizer.encode(line["prompt"]).ids
        completion = tokenizer.encode(line["completion"], add_special_tokens=False).ids
        return Example(prompt + completion, len(prompt))
    label = LABELS.index(line["label"]) if "label" in line else None
    return Example(tokenizer.encode(line["text"]).ids, 1, label)
