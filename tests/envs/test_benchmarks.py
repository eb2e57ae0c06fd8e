"""The demo and the benchmarks, run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(*words: str) -> tuple[int, str]:
    with start(*words) as process:
        output, _ = process.communicate(timeout=100)
        return process.returncode, output


def test_demo_solves_every_problem_and_nothing_else_passes() -> None:
    status, output = run("benchmarks.demo")
    assert status == 0, output
    assert "canonical solutions: 164 of 164 passed" in output
    assert "bodies that return None: 0 of 164 passed" in output
    assert "sandboxes per second" in output
    assert output.isascii()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_demo_leaves_nothing_running(eventually: Callable[..., None], end: signal.Signals) -> None:
    with start("benchmarks.demo", "--sessions", "1") as process:
        demo = psutil.Process(process.pid)

        eventually(lambda: len(demo.children(recursive=True)) > 6, "the demo's server and its sandboxes")
        time.sleep(0.5)
        below = demo.children(recursive=True)
        process.send_signal(end)
        process.communicate(timeout=30)
        assert process.returncode == (130 if end is signal.SIGINT else -end)
    ended = lambda each: not each.is_running() or each.status() == psutil.STATUS_ZOMBIE  # noqa: E731
    eventually(lambda: all(map(ended, below)), f"its processes to end: {below}", 10.0)


def test_bench_shows_and_saves_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "below" / "bench.json"
    status, output = run("benchmarks", "--quick", "--only", "imports", "--json", os.fspath(path))
    assert status == 0, output
    assert "import openenv.core" in output
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert {"cores", "cpu", "governor", "kernel", "python", "load_before"} <= set(saved["machine"])
    (figure, *_) = saved["figures"]
    assert (figure["name"], figure["unit"], figure["ours"]["summary"]["n"]) == ("import openenv.core", "ms", 5)
    assert 0 < figure["ours"]["summary"]["least"] <= figure["ours"]["value"] <= figure["ours"]["p99"]


def test_unknown_figure_is_refused_with_the_known_ones() -> None:
    status, output = run("benchmarks", "--only", "everything")
    assert status == 2
    assert "episode" in output


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (99, 4), (1, 1), (100, 4)])
def test_percentile_is_a_sample(percent: float, expected: float) -> None:
    program = f"from benchmarks.stats import percentile; print(percentile([4, 1, 3, 2], {percent}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(ran.stdout) == expected
