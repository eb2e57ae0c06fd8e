"""The janitor, with a real server process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import UnsupportedError
from sandbox.janitor import Janitor
from sandbox.kernel.cgroups import open_cgroups, remove_stale, tree
from sandbox.kernel.cgroups.tree import start_time

PREFIX = f"openenv-janitor-test-{os.getpid()}"
REPOSITORY = str(Path(__file__).resolve().parents[2])

SERVER = f"""
import os, subprocess, sys, tempfile, time
from sandbox.janitor import Janitor
from sandbox.kernel.cgroups import CgroupLimits, open_cgroups
with_janitor, with_groups = sys.argv[1] == "with", sys.argv[2] == "groups"
sleeper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
inside = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
scratch = tempfile.mkdtemp()
os.makedirs(scratch + "/a/b"); open(scratch + "/a/b/file", "w").close()
os.symlink("/etc", scratch + "/a/link")
directories = ()
if with_groups:
    cgroups = open_cgroups({PREFIX!r})
    cgroups.acquire(CgroupLimits(memory_bytes=64 << 20, tasks=16, cpu_cores=1.0))
    cgroups.adopt(inside.pid)
    directories = cgroups.directories
if with_janitor:
    janitor = Janitor.start()
    janitor.watch_process(sleeper.pid)
    if not with_groups:
        janitor.watch_process(inside.pid)
    janitor.remove_later(*directories)
    janitor.remove_if_empty_later(*(os.path.dirname(path) for path in directories))
    janitor.unlink_later(scratch)
print(janitor.pid if with_janitor else 0, sleeper.pid, inside.pid, scratch, *directories, flush=True)
time.sleep(60)
"""


def groups_work() -> bool:
    try:
        open_cgroups(PREFIX).close()
    except UnsupportedError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    remove_stale(PREFIX)


def gone(pid: int) -> bool:
    return start_time(pid) is None


def until(condition, within_s: float = 2.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("janitor", ["with", "without"])
def test_nothing_survives_a_killed_server_that_had_a_janitor(end: signal.Signals, janitor: str) -> None:
    groups = "groups" if groups_work() else "none"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, janitor, groups], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    words = server.stdout.readline().split()
    watcher, sleeper, inside = (int(word) for word in words[:3])
    scratch, directories = words[3], words[4:]
    try:
        assert not gone(sleeper)
        assert not gone(inside)
        server.send_signal(end)
        server.communicate()
        paths = [scratch, *directories]
        if janitor == "with":
            assert until(lambda: gone(sleeper) and gone(inside))
            assert until(lambda: not any(map(os.path.exists, paths)))
            assert until(lambda: gone(watcher))
            assert not any(os.path.exists(os.path.dirname(path)) for path in directories)
            assert os.path.exists("/etc")  # the link was removed, not followed
        else:
            time.sleep(0.3)
            assert not gone(sleeper)
            assert not gone(inside)
            assert all(map(os.path.exists, paths))
    finally:
        server.kill()
        server.wait()
        for pid in (sleeper, inside):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        for path in directories:
            tree.remove(path)
            if os.path.exists(os.path.dirname(path)):
                os.rmdir(os.path.dirname(path))
        subprocess.run(["rm", "-rf", scratch], check=True)


def test_dismissed_it_does_nothing_and_exits_at_once(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    kept = tmp_path / "kept"
    kept.mkdir()
    try:
        janitor = Janitor.start()
        janitor.watch_process(sleeper.pid)
        janitor.unlink_later(str(kept))
        began = time.monotonic()
        janitor.close()
        janitor.close()
        assert time.monotonic() - began < 1
        assert not janitor.running
        assert sleeper.poll() is None
        assert kept.exists()
        with pytest.raises(ValueError, match="dismissed"):
            janitor.watch_process(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.wait()


def abandon(janitor: Janitor) -> None:
    """What the kernel does for a server that dies."""
    assert janitor._process.stdin is not None
    janitor._process.stdin.close()
    janitor._process.wait(3)


def test_what_was_forgotten_is_left_alone(tmp_path: Path) -> None:
    first, second = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    kept, removed = tmp_path / "kept", tmp_path / "removed"
    kept.mkdir()
    removed.mkdir()
    try:
        janitor = Janitor.start()
        for process in (first, second):
            janitor.watch_process(process.pid)
        janitor.unlink_later(str(kept), str(removed))
        janitor.forget(first.pid, str(kept))
        abandon(janitor)
        assert second.wait(1) == -signal.SIGKILL
        assert first.poll() is None
        assert (kept.exists(), removed.exists()) == (True, False)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_a_later_process_with_the_same_pid_is_left_alone() -> None:
    innocent = subprocess.Popen(["sleep", "60"])
    start = start_time(innocent.pid)
    assert start is not None
    try:
        janitor = Janitor.start()
        janitor._tell({"kill": [innocent.pid, start - 1]})
        abandon(janitor)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_message_cut_off_is_not_an_order_and_the_rest_is_carried_out(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    janitor = Janitor.start()
    assert janitor._process.stdin is not None
    janitor.unlink_later(str(tmp_path / "missing"), str(tmp_path / "whole"))
    janitor._process.stdin.write(f'{{"unlink": ["{tmp_path}/cut"'.encode())
    abandon(janitor)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut"]


def test_signals_that_end_a_server_do_not_end_it() -> None:
    with Janitor.start() as janitor:
        assert until(lambda: Path(f"/proc/{janitor.pid}/cmdline").read_bytes() != b"")
        assert until(lambda: ignores(janitor.pid, signal.SIGQUIT))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(janitor.pid, number)
        time.sleep(0.05)
        assert janitor.running
        assert os.getsid(janitor.pid) == janitor.pid


def ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def test_it_holds_nothing_but_its_pipe_and_knows_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENENV_TEST_SECRET", "hunter2")
    with open("/dev/zero") as other:
        os.set_inheritable(other.fileno(), True)
        with Janitor.start() as janitor:
            assert until(lambda: ignores(janitor.pid, signal.SIGTERM))
            targets = {
                int(name): os.readlink(f"/proc/{janitor.pid}/fd/{name}")
                for name in os.listdir(f"/proc/{janitor.pid}/fd")
            }
            assert targets.pop(0).startswith("pipe:")
            assert targets == {1: "/dev/null", 2: "/dev/null"}
            assert b"hunter2" not in Path(f"/proc/{janitor.pid}/environ").read_bytes()
            assert os.readlink(f"/proc/{janitor.pid}/cwd") == "/"


def test_a_dead_janitor_is_noticed() -> None:
    janitor = Janitor.start()
    os.kill(janitor.pid, signal.SIGKILL)
    assert until(lambda: not janitor.running)
    with pytest.raises(BrokenPipeError):
        janitor.remove_later("/nowhere")
    janitor.close()


def test_a_dead_process_is_not_watched() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    with Janitor.start() as janitor, pytest.raises(ProcessLookupError):
        janitor.watch_process(dead.pid)
