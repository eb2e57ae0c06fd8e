"""Measure this machine: every figure beside its peers, in the same run.

Figures of a busy machine say little: the load before the start is part of the report.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from rich.console import Console

from benchmarks import machine, report
from benchmarks.figures import Figure, Options

_GROUPS = ("episode", "throughput", "memory", "cpu", "timeout", "imports")


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples: to try it, not to quote it")
    parser.add_argument("--only", action="append", choices=_GROUPS, metavar="NAME", help=f"of {', '.join(_GROUPS)}")
    parser.add_argument("--json", default="build/bench.json", metavar="PATH", help="default build/bench.json")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    here = machine.facts()
    try:
        figures, failed = _measure(arguments.only or _GROUPS, Options(quick=arguments.quick), console)
    except KeyboardInterrupt:
        console.print("interrupted; nothing was saved")
        sys.exit(130)
    report.show(console, here, figures)
    report.save(arguments.json, here, {"quick": arguments.quick, "failed": failed}, figures)
    console.print(f"saved: {arguments.json}")
    if failed:
        console.print(f"failed: {', '.join(failed)}")
        sys.exit(1)


def _measure(groups: Sequence[str], options: Options, console: Console) -> tuple[list[Figure], list[str]]:
    """The figures, and the groups that could not be measured: the others are worth having all the same."""
    figures: list[Figure] = []
    failed = []
    for name in groups:
        console.print(f"measuring: {name}")
        try:
            figures += importlib.import_module(f"benchmarks.figures.{name}").measure(options)
        except Exception:
            console.print(traceback.format_exc(), markup=False)
            failed.append(name)
    return figures, failed


if __name__ == "__main__":
    main()
