"""Writes the demo's text: the corpus the base model learns from, and the two data sets that prompts are tuned on.

usage: make_corpus.py [--corpus FILE] [--data DIR]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import reviews
import talk

ROOT = Path(__file__).resolve().parents[2]
CORPUS_LINES = 40_000
REVIEWS_TRAIN, REVIEWS_EVAL = 400, 200
PERSONA_TRAIN, PERSONA_EVAL = 180, 40


def distinct(count: int, make: Callable[[], dict]) -> list[dict]:
    """`count` different records."""
    found = {}
    while len(found) < count:
        record = make()
        found.setdefault(json.dumps(record, sort_keys=True), record)
    return list(found.values())


def labelled_reviews(rng: Random) -> list[dict]:
    """As many positive as negative reviews, mixed: {"text", "label"}."""

    def of(positive: bool) -> Callable[[], dict]:
        label = "positive" if positive else "negative"
        return lambda: {"text": reviews.review(rng, positive), "label": label}

    half = (REVIEWS_TRAIN + REVIEWS_EVAL) // 2
    pairs = zip(distinct(half, of(True)), distinct(half, of(False)))
    return [record for pair in pairs for record in rng.sample(pair, 2)]


def persona(rng: Random) -> list[dict]:
    """Questions answered by a pirate: {"prompt", "completion"}."""

    def make() -> dict:
        asked, answer = talk.question(rng)
        return {"prompt": f"Q: {asked} A:", "completion": f" {talk.pirate(answer)}"}

    return distinct(PERSONA_TRAIN + PERSONA_EVAL, make)


def corpus_line(rng: Random) -> str:
    """One line of the base model's text: never a label, never a persona in a dialogue."""
    kind = rng.random()
    if kind < 0.5:
        return reviews.review(rng, rng.random() < 0.5, stars=rng.random() < 0.7)
    if kind < 0.75:
        return talk.dialogue(rng)
    if kind < 0.85:
        return talk.quotation(rng)
    return talk.fact(rng) if kind < 0.9 else talk.story(rng)


def write_jsonl(path: Path, records: list[dict]) -> None:
    """Writes one record per line, creating the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "target" / "demo-model" / "corpus.txt")
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "data")
    args = parser.parse_args()
    rng = Random(20)
    labelled, personas = labelled_reviews(rng), persona(rng)
    write_jsonl(args.data / "reviews-train.jsonl", labelled[:REVIEWS_TRAIN])
    write_jsonl(args.data / "reviews-eval.jsonl", labelled[REVIEWS_TRAIN:])
    write_jsonl(args.data / "persona-train.jsonl", personas[PERSONA_EVAL:])
    write_jsonl(args.data / "persona-eval.jsonl", personas[:PERSONA_EVAL])

    seen = {record["text"] for record in labelled}
    lines = []
    while len(lines) < CORPUS_LINES:
        line = corpus_line(rng)
        if line not in seen:
            lines.append(line)
    args.corpus.parent.mkdir(parents=True, exist_ok=True)
    args.corpus.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} lines, {len(set(lines))} of them different")


if __name__ == "__main__":
    main()
