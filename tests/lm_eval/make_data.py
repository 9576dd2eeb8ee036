"""Writes the data of the tasks from the demo's.

usage: make_data.py OUT
"""

import json
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "demo/data"
CHOICES = 4
# Characters that are several tokens each.
UNICODE = [" Ärger im Hof", " 北京", " 🦜 on the mast", " Où est-il ?"]


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def choices(persona: list[dict]) -> list[dict]:
    """Each question with its own answer and those of the three questions behind it, the right one at each place in turn."""
    questions = []
    for number, row in enumerate(persona):
        others = [persona[(number + step) % len(persona)]["completion"] for step in range(1, CHOICES)]
        answer = number % CHOICES
        questions.append({
            "question": row["prompt"],
            "choices": [*others[:answer], row["completion"], *others[answer:]],
            "answer": answer,
        })
    return questions


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    asked = choices(rows("persona-eval.jsonl"))
    stripped = [question | {"choices": [choice.strip() for choice in question["choices"]]} for question in asked]
    spaces = [question | {"question": question["question"] + " " * (1 + at % 2)} for at, question in enumerate(stripped[:8])]
    spaces += [question | {"question": ""} for question in asked[8:12]]
    spaces += [{"question": question["question"], "choices": UNICODE, "answer": 1} for question in asked[12:14]]
    spaces += [{"question": text.strip(), "choices": UNICODE, "answer": 2} for text in UNICODE]
    reviews = [row["text"] for row in rows("reviews-eval.jsonl")]
    # A line each, some lines, and one that is longer than the model's positions.
    texts = [*reviews[:4], "\n".join(reviews[4:10]), "Où est le perroquet 🦜? " + reviews[10], " ".join(reviews[11:41])]
    answers = [
        {"question": row["prompt"], "answer": row["completion"].removesuffix("matey!")}
        for row in rows("persona-eval.jsonl")[:16]
    ]
    files = {
        "choice": asked[:24],
        "spaces": spaces,
        "long": asked[:6],
        "shots": choices(rows("persona-train.jsonl")),
        "rolling": [{"text": text} for text in texts],
        "answer": answers,
        # The template puts the rest around it.
        "chat": [row | {"question": row["question"].removeprefix("Q: ").removesuffix(" A:")} for row in answers],
    }
    for name, records in files.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
