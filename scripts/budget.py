"""Run a command within a budget of time: python scripts/budget.py NAME SECONDS CPU_SECONDS COMMAND...

Exits with the command's code; with 1 when that was 0 and the budget is passed by half. Two clocks count:

- processor time of the command and all its children: it holds on a busy machine, too;
- time on the clock, only where nobody else kept the machine busy meanwhile: it sees what only waits.

A slower machine has more of both: a small fixed piece of work is taken again and again meanwhile, and the
budgets are multiplied by how much longer it takes than where they were set. The work is a new Python that
imports and computes, because that is most of what tests do: machines differ less in plain computing than in
what the kernel does for a new process.
QMPSNAP_BUDGET=no only says what was taken.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

OVER = 1.5
REFERENCE = 0.12  # seconds of `work` where the budgets were set, on two cores
IDLE = 0.1  # of all processors, busy with what is not ours
EVERY = 3.0  # seconds
WORK = """
import argparse, asyncio, json, subprocess
made = {}
for number in range(30_000):
    made[str(number)] = [number, (number,)]
sorted(made, key=hash)
"""


def work() -> float:
    """Take a fixed piece of work in a new process; return its processor seconds."""
    child = subprocess.Popen([sys.executable, "-I", "-c", WORK])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def sample(ended: threading.Event, taken: list[float]) -> None:
    """Take the work again and again until `ended`, once at least."""
    taken.append(work())
    while not ended.wait(EVERY):
        taken.append(work())


def busy() -> float:
    """Return the seconds that all processors together were busy since the start of the machine."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def used() -> float:
    """Return the processor seconds of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def verdict(
    *, elapsed: float, cpu: float, others: float, seconds: float, cpu_seconds: float, slow: float
) -> str:
    """Return what passed its budget by half, or ""; `others`: part of the machine that others used."""
    if cpu > OVER * cpu_seconds * slow:
        return f"{cpu:.0f} s of processor time, budget {cpu_seconds * slow:.0f}"
    if others <= IDLE and elapsed > OVER * seconds * slow:
        return f"{elapsed:.0f} s, budget {seconds * slow:.0f}"
    return ""


def main() -> int:
    """Run the command; return the exit code."""
    name, seconds, cpu_seconds, *command = sys.argv[1:]
    ended, taken = threading.Event(), list[float]()
    sampler = threading.Thread(target=sample, args=(ended, taken))
    start, was_busy = time.monotonic(), busy()
    sampler.start()
    code = subprocess.run(command, check=False).returncode
    elapsed = time.monotonic() - start
    ended.set()
    sampler.join()
    cpu = used() - sum(taken)
    cores = os.cpu_count() or 1
    others = max(0.0, busy() - was_busy - cpu - sum(taken)) / (elapsed * cores)
    slow = max(1.0, sum(taken) / len(taken) / REFERENCE)
    over = verdict(
        elapsed=elapsed,
        cpu=cpu,
        others=others,
        seconds=float(seconds) * max(1.0, 2 / cores),
        cpu_seconds=float(cpu_seconds),
        slow=slow,
    )
    print(
        f"== {name} took {elapsed:.0f} s, {cpu:.0f} s of processor time; budget {seconds} and {cpu_seconds}"
        f" on a machine {slow:.1f} times as quick; others used {others:.0%} of it",
        file=sys.stderr,
    )
    if over and code == 0 and os.environ.get("QMPSNAP_BUDGET") != "no":
        print(f"== {name} passes its budget by half: {over}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
