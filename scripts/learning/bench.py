"""Every method on two tasks, through two servers by petals-tune and in torch by PEFT: held-out scores, trained values, seconds and bytes.

Usage: bench.py BIN MODEL DATA WORK [--modes M,…] [--tasks T,…] [--seeds N] [--steps T=N,…] [--torch PYTHON] [--dtype DTYPE] [--flags "--lr 0.1 …"] [--prefix-len N]
Without --flags, petals-tune runs on its defaults. Torch starts from the tables that petals-tune starts from, with its settings."""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = {"sst2": "seq-cls", "shakespeare": "causal-lm"}
MODES = ["ptune", "deep_ptune", "prefix", "lora", "ia3", "deep_ptune+lora"]
# PEFT has no deep prompts and no combinations, and takes no prefix of keys and values for classification of these models.
PEFT = {("sst2", "ptune"), ("sst2", "lora"), ("sst2", "ia3"), *(("shakespeare", mode) for mode in ["ptune", "prefix", "lora", "ia3"])}


def run(command):
    """The events of a command, each with the time when it came."""
    child = subprocess.Popen([*map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = [{**json.loads(line), "at": time.time()} for line in child.stdout]
    said = child.stderr.read()
    if child.wait():
        sys.exit(f"{shlex.join(map(str, command))}\n{said[-2000:]}")
    return found


def of(found, name):
    return [event for event in found if event["event"] == name]


class Swarm:
    """Two servers with half of the blocks each."""

    def __init__(self, binaries, model, work, dtype):
        blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
        self.nodes, self.peers = [], None
        for span in [f"0..{blocks // 2}", f"{blocks // 2}..{blocks}"]:
            log = work / f"node-{span}.json"
            peers = ["--peers", self.peers] if self.peers else []
            command = [binaries / "petals-node", "serve", "--model", model, "--blocks", span, "--device", "cpu", "--dtype", dtype, "--json", *peers]
            with log.open("w") as out:
                command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
                self.nodes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL))
            address = self.wait(log, "listening")["address"]
            self.wait(log, "ready")
            self.peers = self.peers or address

    def wait(self, log, name):
        while True:
            for line in log.read_text().splitlines():
                if (event := json.loads(line))["event"] == name:
                    return event
            time.sleep(0.1)

    def stop(self):
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.wait()


def ours(args, swarm, task, mode, seed, out, flags):
    """Trains by petals-tune; score, seconds and bytes of its steps, and the rate of each."""
    prefix = [] if mode in ("lora", "ia3") else ["--prefix-len", args.prefix_len]
    command = [args.bin / "petals-tune", "train", "--model", args.model, "--peers", swarm.peers, "--mode", mode, *prefix]
    command += ["--task", TASKS[task], "--data", args.data / f"{task}-train.jsonl", "--eval", args.data / f"{task}-test.jsonl"]
    command += ["--steps", args.steps[task], "--seed", seed, "--dtype", args.dtype, "--out", out, *flags]
    found = run(command)
    steps, score = of(found, "step"), of(found, "eval")[-1]
    # Between the first and the last step: reading data and measuring is not training.
    seconds = (steps[-1]["at"] - steps[0]["at"]) * len(steps) / max(1, len(steps) - 1)
    traffic = sum(step["sent"] + step["received"] for step in steps) / len(steps)
    return {"score": score, "seconds": seconds, "bytes": traffic, "rates": [step["lr"] for step in steps]}


def torch(args, swarm, task, mode, seed, work, flags, rates):
    """Trains by PEFT from the tables that such a run of petals-tune starts from, with the same rates."""
    start, rates_file = work / "start", work / "rates.json"
    one = argparse.Namespace(**{**vars(args), "steps": {task: 1}})
    kept = [flag for number, flag in enumerate(flags) if "--lr" not in flags[max(0, number - 1) : number + 1]]
    ours(one, swarm, task, mode, seed, start, [*kept, "--lr", "0"])
    rates_file.write_text(json.dumps(rates))
    command = [args.torch, Path(__file__).parent / "torch_side.py", args.model, start, "--task", TASKS[task], "--rates", rates_file]
    command += ["--dtype", "bf16" if args.dtype == "bf16" else "f32"]
    command += ["--train", args.data / f"{task}-train.jsonl", "--test", args.data / f"{task}-test.jsonl", "--seed", seed]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def mean(values):
    """Mean and spread."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["bin", "model", "data", "work"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", default="sst2=60,shakespeare=40")
    parser.add_argument("--prefix-len", type=int, default=16)
    parser.add_argument("--torch", help="Python with torch and PEFT")
    parser.add_argument("--torch-seeds", type=int, default=3, help="seeds of these for PEFT too")
    parser.add_argument("--dtype", default="bf16", help="how weights are kept, by servers and for the head")
    parser.add_argument("--flags", default="", help="more flags of petals-tune train")
    args = parser.parse_args()
    args.steps = {task: int(steps) for task, steps in (part.split("=") for part in args.steps.split(","))}
    args.work.mkdir(parents=True, exist_ok=True)
    swarm, flags = Swarm(args.bin, args.model, args.work, args.dtype), shlex.split(args.flags)
    print("| task | method | score | PEFT's | parameters | seconds | PEFT's | bytes a step |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    try:
        for task in args.tasks.split(","):
            for mode in args.modes.split(","):
                found, theirs = [], []
                for seed in range(args.seeds):
                    with tempfile.TemporaryDirectory() as folder:
                        done = ours(args, swarm, task, mode, seed, Path(folder) / "out", flags)
                        found.append(done)
                        if args.torch and seed < args.torch_seeds and (task, mode) in PEFT:
                            theirs.append(torch(args, swarm, task, mode, seed, Path(folder), flags, done["rates"]))
                row(args, task, mode, found, theirs)
    finally:
        swarm.stop()


def row(args, task, mode, found, theirs):
    # Accuracy of classes; of texts what a token costs, in nats.
    name = "accuracy" if TASKS[task] == "seq-cls" else "loss"
    seconds = mean(run["seconds"] for run in found)
    their_score, their_seconds = "–", "–"
    if theirs:
        their_score, their_seconds = mean(run[name] for run in theirs), mean(run["seconds"] for run in theirs)
    parameters = theirs[0]["trained"] if theirs else "–"
    score, sent = mean(run["score"][name] for run in found), statistics.mean(run["bytes"] for run in found)
    print(f"| {task} | {mode} | {score} | {their_score} | {parameters} | {seconds} | {their_seconds} | {sent / 1e3:.0f} kB |", flush=True)


if __name__ == "__main__":
    main()
