"""Runs two programs in turn and compares their figures. The shell scripts beside this directory say which.

usage: compare.py [--rounds N] [--names A B] -- COMMAND A -- COMMAND B

Both print one JSON object per figure, with `what` and `ms`. The ratio is that of the second program's mean time to the first one's.
Behind the table stands how many cores other programs used in each run: figures with more than 0.1 are not worth much.
"""

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile

from load import Foreign, wait_for_quiet

# Seconds without a figure after which a program hangs, and those that it has to end once it closes its output.
PATIENCE, GRACE = 900, 30


def lines_of(process, patience):
    """What a process prints, until it ends, or is silent for as many seconds as `patience()` says."""
    text, selector = b"", selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    while selector.select(patience()):
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return
        *whole, text = (text + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def figures(name, command, expected=None):
    """Runs a command and returns its figures, and how many cores others used meanwhile. Figures count once they are printed: a program that crashes or
    hangs behind them is ended, and said to have done so. `expected` is how many there are, if that is known."""
    wait_for_quiet()
    foreign, found = Foreign(), []
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    try:
        for line in lines_of(process, lambda: GRACE if len(found) == expected else PATIENCE):
            if line.startswith("{"):
                figure = json.loads(line)
                print(f"  {name}: {figure['what']}: {figure['ms']:.2f} ms", flush=True)
                found.append((figure["what"], figure["ms"]))
        cores = foreign.cores()
        try:
            status = process.wait(GRACE)
        except subprocess.TimeoutExpired:
            status = "none: it had to be ended"
    finally:
        # With whatever it has started.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    if status:
        log.seek(0)
        said = f"{name} ended with status {status}"
        if not found:
            sys.exit(f"{log.read()[-2000:]}\n{said}")
        print(f"  {said}", flush=True)
    print(f"  others used {cores:.2f} cores", flush=True)
    return found, cores


def main():
    words, commands = sys.argv[1:], []
    while "--" in words:
        at = len(words) - 1 - words[::-1].index("--")
        commands.insert(0, words[at + 1:])
        words = words[:at]
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--names", nargs=2, default=["ours", "theirs"])
    arguments = parser.parse_args(words)
    times, foreign = [{}, {}], []
    for round in range(arguments.rounds):
        for which, command in enumerate(commands):
            print(f"== round {round + 1}: {arguments.names[which]}", flush=True)
            found, cores = figures(arguments.names[which], command, len(times[0]) if which else None)
            foreign.append(cores)
            for what, ms in found:
                times[which].setdefault(what, []).append(ms)
    ours, theirs = arguments.names
    print(f"\n| what | {theirs}, ms | {ours}, ms | {theirs} / {ours} |\n|---|---|---|---|")
    for what, mine in times[0].items():
        other = times[1].get(what, [])
        show = lambda values: " / ".join(f"{value:.1f}" for value in values) or "-"
        ratio = f"{sum(other) / len(other) / (sum(mine) / len(mine)):.2f}" if other else "-"
        print(f"| {what} | {show(other)} | {show(mine)} | {ratio} |")
    print(f"\nOther programs used {' / '.join(f'{cores:.2f}' for cores in foreign)} cores.")


if __name__ == "__main__":
    main()
