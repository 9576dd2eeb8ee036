"""Petals on this machine: starts two servers on loopback, measures, stops them. Prints one JSON object per figure.

usage: measure.py MODEL_DIRECTORY [--steps N] [--dtype f32|bf16] [--decode]     the dtype is that of servers and client
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from time import perf_counter

BATCH, LENGTH, PREFIX, TOKENS = 4, 128, 16, 32


def start(path, spans, run, dtype):
    """Starts a server for each span, as a process group of its own; returns them and the first one's address."""
    servers, address = [], None
    for number, span in enumerate(spans):
        log = os.path.join(run, f"server{number}.log")
        command = [sys.executable, "-m", "petals.cli.run_server", path, "--dht_prefix", "bench", "--identity_path",
                   f"{run}/id{number}", "--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--block_indices", span, "--device", "cpu",
                   "--torch_dtype", dtype, "--throughput", "1", "--skip_reachability_check"]
        command += ["--initial_peers", address] if address else ["--new_swarm"]
        with open(log, "w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=run, start_new_session=True,
                                      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        servers.append(server)
        deadline = time.time() + 240
        while True:
            text = open(log).read()
            found = re.search(r"Running a server on \['([^']+)'", text)
            if found and not address:
                address = found.group(1)
            if re.search(r"\[INFO\] Started$", text, re.M):
                break
            if server.poll() is not None or time.time() > deadline:
                raise RuntimeError(f"server {number} did not start:\n{text[-2000:]}")
            time.sleep(0.1)
    return servers, address


def stop(servers):
    """SIGINT, which Petals handles cleanly; then the whole process group."""
    for server in servers:
        server.send_signal(signal.SIGINT)
    for server in servers:
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def figure(what, times):
    median = statistics.median(times)
    print(json.dumps({"what": what, "ms": 1e3 * median, "tokens_per_s": BATCH * LENGTH / median}), flush=True)


def measure(path, address, steps, dtype):
    import torch
    from petals import AutoDistributedModel, AutoDistributedModelForCausalLM, AutoDistributedModelForSequenceClassification

    common = dict(initial_peers=[address], dht_prefix="bench", torch_dtype=getattr(torch, dtype))
    torch.manual_seed(42)
    model, times = AutoDistributedModel.from_pretrained(path, **common), []
    with torch.inference_mode():
        for step in range(steps + 1):
            ids = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))
            started = perf_counter()
            model(ids)
            times.append(perf_counter() - started)
    figure("forward", times[1:])
    prompts = dict(tuning_mode="deep_ptune", pre_seq_len=PREFIX)
    for task in ("causal-lm", "seq-cls"):
        if task == "seq-cls":
            model = AutoDistributedModelForSequenceClassification.from_pretrained(path, num_labels=2, **prompts, **common)
            model.config.pad_token_id = 0
        else:
            model = AutoDistributedModelForCausalLM.from_pretrained(path, **prompts, **common)
        optimizer, times = torch.optim.Adam(model.parameters()), []
        for step in range(steps + 1):
            ids = torch.randint(1, model.config.vocab_size, (BATCH, LENGTH))
            labels = torch.randint(0, 2, (BATCH,)) if task == "seq-cls" else ids
            started = perf_counter()
            model(ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(perf_counter() - started)
        figure(f"train {task}, deep add", times[1:])


def decode(path, address, steps, dtype):
    """Greedy tokens of one user and of eight at a time, each in a session of its own. The prompt is not timed."""
    import threading
    import torch
    from petals import AutoDistributedModelForCausalLM

    model = AutoDistributedModelForCausalLM.from_pretrained(
        path, initial_peers=[address], dht_prefix="bench", torch_dtype=getattr(torch, dtype))
    torch.set_num_threads(1)

    def user(number, begun):
        with torch.inference_mode(), model.transformer.h.inference_session(max_length=8 + TOKENS + 2) as session:
            ids = torch.randint(3, model.config.vocab_size, (1, 8), generator=torch.Generator().manual_seed(number))
            model.generate(ids, max_new_tokens=1, do_sample=False, session=session)
            begun.wait()
            model.generate(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, session=session)

    for users in (1, 8):
        times = []
        for step in range(steps + 1):
            begun = threading.Barrier(users + 1)
            threads = [threading.Thread(target=user, args=(number, begun)) for number in range(users)]
            for thread in threads:
                thread.start()
            begun.wait()
            started = perf_counter()
            for thread in threads:
                thread.join()
            times.append(perf_counter() - started)
        median = statistics.median(times[1:]) / TOKENS
        print(json.dumps({"what": f"a token of each of {users}", "ms": 1e3 * median, "tokens_per_s": users / median}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--decode", action="store_true")
    arguments = parser.parse_args()
    path, dtype = os.path.abspath(arguments.model), {"f32": "float32", "bf16": "bfloat16"}[arguments.dtype]
    blocks = json.load(open(os.path.join(path, "config.json")))["num_hidden_layers"]
    with tempfile.TemporaryDirectory() as run:
        os.environ.update(PETALS_CACHE=run, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONWARNINGS="ignore")
        servers = []
        try:
            servers, address = start(path, [f"0:{blocks // 2}", f"{blocks // 2}:{blocks}"], run, dtype)
            (decode if arguments.decode else measure)(path, address, arguments.steps, dtype)
        finally:
            stop(servers)


if __name__ == "__main__":
    main()
