"""Data files of scripts/bench-learning: SST-2 with a question behind each sentence, measured on what GLUE calls its validation set, and Shakespeare in pieces.

Usage: make_data.py DATA OUT"""

import json
import sys
from pathlib import Path

# Behind each sentence: what is read is the row of its last token.
QUESTION = "\nmood:"
# Characters of Shakespeare that are learnt from, and of the end of the file that are held out.
LEARNT, HELD_OUT, PIECE = 400_000, 60_000, 450


def pieces(text):
    """Lines together, about as long as a hundred tokens."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) > PIECE:
            yield piece
            piece = ""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main():
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for part, name in [("train", "train"), ("dev", "test")]:
        rows = map(json.loads, (data / "sst2" / f"{part}.jsonl").open())
        write(out / f"sst2-{name}.jsonl", [{"text": row["text"] + QUESTION, "label": row["label"]} for row in rows])
    text = (data / "shakespeare/input.txt").read_text()
    for part, text in [("train", text[:LEARNT]), ("test", text[-HELD_OUT:])]:
        write(out / f"shakespeare-{part}.jsonl", [{"text": piece} for piece in pieces(text)])


main()
