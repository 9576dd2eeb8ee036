"""A text of two thousand tokens as a prefix of a tenth of its rows: perplexity with nothing, with the text and with the prefix in front.

Usage: cartridge.py BIN MODEL DATA WORK [--rows N] [--steps N]      DATA as made by make_data.py, MODEL the base of scripts/bench-learning
The text is Shakespeare, which the model never saw. Texts to learn on are other parts of the same file, and so are those that are measured."""

import argparse
import json
import math
import sys
from pathlib import Path

from bench import Swarm, of, run

# Characters that are a little more than two thousand tokens of the base model.
CONTEXT, LEARNT, MEASURED = 7400, 300, 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["bin", "model", "data", "work"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dtype", default="bf16", help="how the servers keep their weights")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = (args.data / "shakespeare-train.jsonl").read_text().splitlines(keepends=True)
    text, used = "", 0
    while len(text) < CONTEXT:
        text += json.loads(rows[used])["text"]
        used += 1
    files = {name: args.work / name for name in ["context.txt", "learnt.jsonl", "measured.jsonl"]}
    files["context.txt"].write_text(text)
    files["learnt.jsonl"].write_text("".join(rows[used : used + LEARNT]))
    files["measured.jsonl"].write_text("".join((args.data / "shakespeare-test.jsonl").read_text().splitlines(keepends=True)[:MEASURED]))
    swarm, out = Swarm(args.bin, args.model, args.work, args.dtype), args.work / "cartridge"
    tune = lambda *command: run([args.bin / "petals-tune", command[0], "--model", args.model, "--peers", swarm.peers, *command[1:]])
    try:
        found = tune("distill", "--context", files["context.txt"], "--prefix-len", args.rows, "--data", files["learnt.jsonl"], "--eval",
                     files["measured.jsonl"], "--eval-first", "--steps", args.steps, "--out", out)
        speeds = {}
        prompt = json.loads(rows[used + LEARNT])["text"]
        for name, front, adapter in [("text", text, []), ("prefix", "", ["--adapter", out])]:
            made = of(tune("generate", "--prompt", front + prompt, "--max-new-tokens", 64, *adapter), "generated")[-1]
            speeds[name] = made.get("tokens_per_s") or 0.0
    finally:
        swarm.stop()
    taught, evals = of(found, "taught")[0], of(found, "eval")
    config = json.loads((args.model / "config.json").read_text())
    row_bytes = config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"] * 4
    tokens = taught["context_tokens"]
    print("| in front | rows | perplexity | tokens/s of a text | cache |")
    print("|---|---:|---:|---:|---:|")
    lines = [("nothing", 0, taught["loss_without"], None), ("the text", tokens, taught["loss"], speeds["text"])]
    lines += [("its first rows, untrained", args.rows, evals[0]["loss"], None), ("the prefix", args.rows, evals[-1]["loss"], speeds["prefix"])]
    for name, count, loss, speed in lines:
        print(f"| {name} | {count} | {math.exp(loss):.1f} | {f'{speed:.0f}' if speed else ''} | {count * row_bytes / 1e6:.2f} MB |")
    apart = math.exp(evals[-1]["loss"] - taught["loss"]) - 1
    print(f"with the prefix the perplexity is {apart:+.1%} from that with the text")
    sys.exit(apart > 0.05)


if __name__ == "__main__":
    main()
