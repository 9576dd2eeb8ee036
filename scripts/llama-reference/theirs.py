"""llama.cpp on a GGUF: one JSON object per figure. usage: theirs.py BUILD MODEL.gguf [--threads N] [--rpc] [--skip-batch]

A token of a text, a token of each of eight texts, a prompt of 512 tokens; with --rpc through two RPC servers on loopback, no batch then."""

import argparse
import json
import re
import subprocess
import time


def figure(what, tokens_per_s, tokens=1):
    print(json.dumps({"what": what, "ms": 1e3 * tokens / tokens_per_s, "tokens_per_s": tokens_per_s}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rpc", action="store_true")
    args = parser.parse_args()
    servers, more = [], []
    if args.rpc:
        ports = [50952, 50953]
        for port in ports:
            command = [f"{args.build}/bin/ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-t", args.threads]
            servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(1)
        more = ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports), "-ngl", "99"]
    try:
        command = [f"{args.build}/bin/llama-bench", "-m", args.model, "-t", args.threads, "-p", "512", "-n", "64", "-r", "3", "-o", "json", *more]
        for run in json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout):
            prompt = run["n_prompt"]
            figure(*(("a prompt of 512", run["avg_ts"], 512) if prompt else ("a token of each of 1", run["avg_ts"])))
    finally:
        for server in servers:
            server.terminate()
    if args.rpc:
        return
    command = [f"{args.build}/bin/llama-batched-bench", "-m", args.model, "-t", args.threads, "-c", "4096", "-npp", "8", "-ntg", "32", "-npl", "8"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [re.split(r"\s*\|\s*", line.strip(" |")) for line in table.splitlines() if line.startswith("|")]
    column = rows[0].index("S_TG t/s")
    figure("a token of each of 8", float(rows[-1][column]), 8)


main()
