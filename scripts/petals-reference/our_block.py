"""The same block as in `block.py`, by `petals-node bench`. usage: our_block.py PROGRAMS MODEL_DIRECTORY [--dtype f32|bf16] [--repeat N]"""

import argparse
import json
import subprocess

parser = argparse.ArgumentParser()
parser.add_argument("programs")
parser.add_argument("model")
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--repeat", type=int, default=15)
arguments = parser.parse_args()
# A block in the middle: its input's gradient is wanted and all of its rows are read.
command = [f"{arguments.programs}/petals-node", "bench", "forward", "train", "--blocks", "1..2", "--prefix-len", "0", "--json"]
command += ["--device", "cpu", "--dtype", arguments.dtype, "--repeat", str(arguments.repeat), "--warmup", "3", "--model", arguments.model]
for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
    event = json.loads(line)
    if event["event"] == "bench" and event["what"] != "train":
        print(json.dumps({"what": f"{event['what']}, {arguments.dtype}", "ms": event["median_ms"]}))
