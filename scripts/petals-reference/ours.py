"""This project's programs on the same terms as `measure.py`: two servers on loopback, measured, stopped. One JSON object per figure.

usage: ours.py PROGRAMS_DIRECTORY MODEL_DIRECTORY [--steps N] [--dtype f32|bf16|int8|int4] [--decode]
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time


class Node:
    """A `petals-node` process."""

    def __init__(self, programs, *arguments):
        command = [f"{programs}/petals-node", *arguments, "--json", "--listen", "/ip4/127.0.0.1/tcp/0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.address = self.event("listening")["address"]

    def event(self, name, patience=240):
        """Waits for an event. Nothing is read ahead, so that waiting can time out."""
        line, deadline = b"", time.monotonic() + patience
        while True:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise RuntimeError(f"no `{name}` event within {patience} s")
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise RuntimeError(f"petals-node ended before its `{name}` event")
            line += byte
            if byte == b"\n":
                event = json.loads(line)
                if event["event"] == name:
                    return event
                line = b""

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def bench(programs, arguments):
    command = [f"{programs}/petals-tune", "bench", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "bench":
                yield event
    if process.returncode:
        raise RuntimeError(f"petals-tune ended with {process.returncode}")


def figure(what, event):
    print(json.dumps({"what": what, "ms": event["median_ms"], "tokens_per_s": event["tokens_per_s"]}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "int8", "int4"])
    parser.add_argument("--decode", action="store_true")
    arguments = parser.parse_args()
    programs, model = arguments.programs, os.path.abspath(arguments.model)
    with open(os.path.join(model, "config.json")) as config:
        blocks = json.load(config)["num_hidden_layers"]
    nodes = [Node(programs, "bootstrap")]
    try:
        peers = nodes[0].address
        for span in (f"0..{blocks // 2}", f"{blocks // 2}..{blocks}"):
            place = ["serve", "--model", model, "--blocks", span, "--device", "cpu", "--dtype", arguments.dtype, "--peers", peers]
            nodes.append(Node(programs, *place))
        for node in nodes[1:]:
            node.event("ready")
        # What travels has a width of its own; weights in blocks stand beside Petals in f32.
        wire = "bf16" if arguments.dtype == "bf16" else "f32"
        common = ["--model", model, "--peers", peers, "--dtype", arguments.dtype, "--wire-dtype", wire, "--repeat", str(arguments.steps)]
        if arguments.decode:
            for users in (1, 8):
                for event in bench(programs, ["decode", "--batch", str(users), *common]):
                    rate = event["tokens_per_s"]
                    print(json.dumps({"what": f"a token of each of {users}", "ms": 1e3 * users / rate, "tokens_per_s": rate}), flush=True)
            return
        for event in bench(programs, ["forward", *common]):
            figure("forward", event)
        for task in ("causal-lm", "seq-cls"):
            # The size of micro-batches is found in the first steps.
            for event in bench(programs, ["train", "--task", task, "--injection", "add", "--warmup", "6", *common]):
                figure(f"train {task}, deep add", event)
    finally:
        for node in nodes:
            node.stop()


if __name__ == "__main__":
    sys.exit(main())
