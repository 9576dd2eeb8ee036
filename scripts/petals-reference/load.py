"""What else the machine is doing: wait until it is quiet, and measure the load of others beside our own processes."""

import os
import sys
import time

import psutil

TICKS = os.sysconf("SC_CLK_TCK")


def busy():
    """Processor seconds that the whole machine has spent, over all cores."""
    values = [int(value) for value in open("/proc/stat").readline().split()[1:9]]
    return (sum(values) - values[3] - values[4]) / TICKS


def own():
    """Processor seconds of this process, of its children, and of those that ended."""
    me = psutil.Process()
    times = me.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in me.children(recursive=True):
        try:
            times = child.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            pass
    return seconds


class Foreign:
    """Cores that other programs used since the last question."""

    def __init__(self):
        self.last = (busy(), own(), time.monotonic())

    def cores(self):
        now = (busy(), own(), time.monotonic())
        everyone, ours, wall = (new - old for new, old in zip(now, self.last))
        self.last = now
        return max(0.0, (everyone - ours) / max(wall, 1e-3))


def wait_for_quiet(limit=None):
    """Waits until less than 0.2 cores are busy, twice for 3 s, but not longer than `limit` seconds."""
    limit = float(os.environ.get("QUIET_WAIT", "60")) if limit is None else limit
    deadline, quiet = time.monotonic() + limit, 0
    while quiet < 2:
        before = busy()
        time.sleep(3)
        cores = (busy() - before) / 3
        quiet = quiet + 1 if cores < 0.2 else 0
        if quiet < 2 and time.monotonic() > deadline:
            print(f"the machine is not quiet: {cores:.1f} cores busy, going on", file=sys.stderr)
            return
