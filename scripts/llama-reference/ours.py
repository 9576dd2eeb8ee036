"""This project's programs on a GGUF: one JSON object per figure, as `theirs.py`. usage: ours.py PROGRAMS MODEL.gguf [--dtype D] [--kv-dtype D] [--servers]

Blocks alone, by `petals-node bench`; with --servers everything, through two servers on loopback."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "petals-reference"))
from ours import Node, bench  # noqa: E402


def figure(what, ms, tokens_per_s):
    print(json.dumps({"what": what, "ms": ms, "tokens_per_s": tokens_per_s}), flush=True)


def blocks(programs, model, kept):
    decode = lambda batch: ["decode", "--batch", str(batch), "--repeat", "64"]
    work = {"a token of each of 1": decode(1), "a prompt of 512": ["prompt", "--batch", "1", "--length", "512", "--repeat", "5"], "a token of each of 8": decode(8)}
    for named, what in work.items():
        command = [f"{programs}/petals-node", "bench", *what, "--model", model, "--device", "cpu", *kept, "--json"]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            event = json.loads(line)
            if event["event"] == "bench":
                figure(named, event["median_ms"], event["tokens_per_s"])


def servers(programs, model, kept, count):
    nodes = [Node(programs, "bootstrap")]
    try:
        peers = nodes[0].address
        for span in (f"0..{count // 2}", f"{count // 2}..{count}"):
            nodes.append(Node(programs, "serve", "--model", model, "--blocks", span, "--device", "cpu", *kept, "--peers", peers))
        for node in nodes[1:]:
            node.event("ready")
        common = ["--model", model, "--peers", peers, "--dtype", kept[1]]
        for event in bench(programs, ["decode", "--batch", "1", "--repeat", "5", *common]):
            figure("a token of each of 1", 1e3 / event["tokens_per_s"], event["tokens_per_s"])
    finally:
        for node in nodes:
            node.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs")
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-dtype", default="f16")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--servers", action="store_true")
    args = parser.parse_args()
    kept = ["--dtype", args.dtype, "--kv-dtype", args.kv_dtype]
    if args.servers:
        servers(args.programs, args.model, kept, args.blocks)
    else:
        blocks(args.programs, args.model, kept)


main()
