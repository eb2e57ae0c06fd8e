"""What a client waits for before its first line: imports, each in a process of its own."""

import os
import subprocess
import sys

from benchmarks.figures import Figure, Measured, Options, times

_GOALS = {
    "import openenv.core": "≤ 150",
    "from openenv.core import EnvClient": "",
    "from coding_env import CodingEnv": "",
}


def measure(options: Options) -> list[Figure]:
    """The time of the statement alone, the interpreter's own start not counted."""
    count = options.count(40)
    return [
        Figure(name=statement, unit="ms", goal=goal, ours=_seconds(statement, count))
        for statement, goal in _GOALS.items()
    ]


def _seconds(statement: str, count: int) -> Measured:
    code = f"import time\nt = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
    samples = []
    for _ in range(count + 1):
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
        )
        samples.append(float(ran.stdout))
    return times(samples[1:])  # the first one may have had to read and compile the files
