"""Figures as a table and as JSON."""

import json
import os
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Measured

__all__ = ["save", "show"]


def show(console: Console, machine: dict[str, Any], figures: Iterable[Figure]) -> None:
    """The table: a median with its 99th percentile where there are samples, otherwise a value."""
    load = ", ".join(f"{each:.2f}" for each in machine["load_before"])
    console.print(
        f"{machine['cores']} cores ({machine['cpu']}, governor {machine['governor']}), kernel {machine['kernel']}, "
        f"Python {machine['python']}, load before the start {load}"
    )
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII, show_lines=not console.is_terminal)
    for name in ("figure", "here (p50 / p99)", "goal", "peers in the same run"):
        table.add_column(name, overflow="fold")
    for figure in figures:
        beside = "\n".join(f"{name}: {_shown(each, figure.unit)}" for name, each in figure.peers.items())
        table.add_row(figure.name, _shown(figure.ours, figure.unit), figure.goal, beside)
    console.print(table)


def save(path: str, machine: dict[str, Any], options: dict[str, Any], figures: Iterable[Figure]) -> None:
    """Everything as JSON, with what was measured behind each figure."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    content = {"machine": machine, "options": options, "figures": [figure.to_json() for figure in figures]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _shown(measured: Measured, unit: str) -> str:
    tail = "" if measured.p99 is None else f" / {_number(measured.p99)}"
    space = "" if unit in {"", "/s"} else " "
    return f"{_number(measured.value)}{tail}{space}{unit}"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
