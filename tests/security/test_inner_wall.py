"""The wall around one sandbox, probed from inside and looked at from outside, each part with a control."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

import pytest

from sandbox import Sandbox, SandboxPool

from ..boxes import pids, policy, works
from .conftest import WITHOUT, probe, weakened

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one id: other promises"),
]
CANARY = "canary-5c1b8e0d"


async def answer(box: Sandbox, name: str, **values: object) -> Any:
    result = await box.run_code(probe(name, **values))
    assert result.outcome == "ok", result
    return json.loads(result.stdout)


async def test_facts_about_itself(box: Sandbox) -> None:
    facts = await answer(box, "facts")
    assert facts["uid"] == facts["gid"] == ["1000"] * 4
    assert facts["groups"] == []
    assert facts["capabilities"] == ["0" * 16] * 5
    assert (facts["no_new_privileges"], facts["seccomp"], facts["threads"]) == ("1", "2", "1")
    assert facts["pids"] == [1, 2]
    assert set(facts["proc"]) <= {"self", "thread-self"}
    assert set(facts["root"]) == {"bin", "dev", "etc", "lib", "lib64", "mnt", "opt", "proc", "tmp", "usr", "workspace"}
    assert set(facts["etc"]) <= {"group", "passwd", "ld.so.cache", "localtime", "ssl"}
    assert set(facts["dev"]) == {
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    }  # fmt: skip
    assert facts["limits"] == [[0, 0], [64, 64]]
    assert (facts["sid"], facts["hostname"], facts["cwd"], facts["oom"]) == (True, "sandbox", "/workspace", "1000")
    assert facts["interfaces"] is None


async def test_control_user(nothing_is_left: str) -> None:
    async with weakened(**WITHOUT["user"]) as pool, pool.sandbox() as box:
        facts = await answer(box, "facts")
        assert facts["uid"] == ["0"] * 4
        assert facts["capabilities"][2] != "0" * 16


async def test_descriptors_are_the_streams_and_ours(box: Sandbox) -> None:
    descriptors = {int(number): kind for number, kind in (await answer(box, "facts"))["descriptors"].items()}
    assert {number: kind for number, kind in descriptors.items() if number < 250} == {
        0: "/dev/null", 1: "pipe", 2: "pipe",
    }  # fmt: skip
    ours = {number: kind for number, kind in descriptors.items() if number >= 250}
    assert list(ours.values()) == ["/dev/null", "pipe", "pipe", "socket"]
    source = "import os\nprint(sorted(int(n) for n in os.popen('ls /proc/self/fd').read().split())[:-1])"
    assert (await box.run_code(source)).stdout == "[0, 1, 2]\n"
    result = await box.run_command(["ls", "/proc/self/fd"])
    assert result.stdout.split() == ["0", "1", "2", "3"]


async def test_control_descriptors(nothing_is_left: str) -> None:
    async with weakened(**WITHOUT["closing"]) as pool, pool.sandbox() as box:
        descriptors = (await answer(box, "facts"))["descriptors"]
        assert len(descriptors) > 7


async def test_no_variable_and_no_path_of_the_server(nothing_is_left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", CANARY)
    async with SandboxPool(policy()) as pool, pool.sandbox() as box:
        facts = await answer(box, "facts")
        assert not {name for name in facts["environment"] if "SECRET" in name or "PATH_INFO" in name}
        assert CANARY not in json.dumps(facts)
        inside = pids(box)
        for pid in inside:  # what the host sees of their environment and memory
            assert CANARY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            assert not _memory_holds(pid, CANARY.encode())
        zygote = pool.driver._zygote.process.pid  # type: ignore[attr-defined]
        assert CANARY.encode() not in Path(f"/proc/{zygote}/environ").read_bytes()
        await box.run_code(f"kept = '{CANARY}'")
        assert any(_memory_holds(pid, CANARY.encode()) for pid in inside)  # the control: the search finds what is there


def _memory_holds(pid: int, text: bytes) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            if mode.startswith("r") and "[v" not in line:
                start, end = (int(part, 16) for part in span.split("-"))
                memory.seek(start)
                try:
                    if text in memory.read(end - start):
                        return True
                except OSError:
                    continue
    return False


async def test_mounts_tell_no_path_of_a_home(box: Sandbox) -> None:
    facts = await answer(box, "facts")
    writable = {line.split()[0] for line in facts["mounts"] if line.endswith(" rw")}
    assert {path for path in writable if not path.startswith("/dev/")} <= {"/workspace", "/tmp", "/proc"}
    assert "/dev/shm" in writable


async def test_files_that_do_not_exist_or_cannot_be_touched(box: Sandbox) -> None:
    found = await answer(box, "reach")
    hidden = {
        path: said
        for path, said in found["read"].items()
        if said not in ("No such file or directory", "Permission denied")
    }
    assert hidden == {}
    refused = {"Read-only file system", "Permission denied", "Operation not permitted", "No such file or directory"}
    assert {path: said for path, said in found["write"].items() if said not in refused} == {}
    assert found["exe"] in ("Text file busy", "Permission denied", "Read-only file system")
    assert found["kill_warden"] in ("None", "Operation not permitted")  # the kernel takes the signal and drops it
    assert found["mknod"] == found["chown"] == "Operation not permitted"
    assert found["up"] == "'/'"
    hard = dict(enumerate(found["rlimit"]))
    assert hard[resource.RLIMIT_CORE] == [0, 0]
    await works(box)
    assert min(pids(box))


async def test_control_proc(nothing_is_left: str) -> None:
    async with weakened(**WITHOUT["private_proc"]) as pool, pool.sandbox() as box:
        facts = await answer(box, "facts")
        assert "meminfo" in facts["proc"] or len(facts["pids"]) > 2


async def test_system_calls_that_are_refused_by_the_filter(box: Sandbox) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the probe are those of x86-64")
    found = await answer(box, "calls")
    reached = {name: said for name, said in found.items() if said not in ("EPERM", "ENOSYS")}
    assert reached == {}
    await works(box)


async def test_control_filter(nothing_is_left: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the probe are those of x86-64")
    async with weakened(**WITHOUT["filter"]) as pool, pool.sandbox() as box:
        found = await answer(box, "calls")
    reached = {name for name, said in found.items() if said not in ("EPERM", "ENOSYS")}
    for name in ("unshare", "socket_inet", "socket_netlink", "keyctl", "seccomp", "io_uring_setup",
                 "personality", "sched_setaffinity", "name_to_handle_at", "vmsplice", "tiocsti", "setns", "inotify_init1"):  # fmt: skip
        assert name in reached, (name, found[name])


INTO_WARDEN = """
import os
found = {}
for name in ('mem', 'environ', 'maps', 'fd', 'root', 'cwd', 'exe'):
    try:
        path = f'/proc/1/{name}'
        found[name] = os.listdir(path) if name in ('fd', 'root') else os.readlink(path) if name in ('cwd', 'exe') else len(open(path, 'rb').read(0) or b'') + 1
    except OSError as e: found[name] = None
print(any(found.values()))
"""


async def test_warden_cannot_be_looked_into(box: Sandbox) -> None:
    assert (await box.run_code(INTO_WARDEN)).stdout == "False\n"


async def test_control_dumpable(nothing_is_left: str) -> None:
    async with weakened(**WITHOUT["dumpable"]) as pool, pool.sandbox() as box:
        assert (await box.run_code(INTO_WARDEN)).stdout == "True\n"


KILLS = [
    "import os\nfor s in range(1, 65):\n  try: os.kill(1, s)\n  except OSError: pass",
    "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass",
    "import os\nfor s in (9, 15, 19, 6, 11):\n  try: os.killpg(1, s)\n  except OSError: pass",
    "import os\nfor p in range(1, 70000):\n  if p != os.getpid():\n    try: os.kill(p, 9)\n    except OSError: pass",
]


@pytest.mark.parametrize("source", KILLS)
async def test_warden_and_others_survive_every_signal(shared_pool: SandboxPool, source: str) -> None:
    async with shared_pool.sandbox() as box, shared_pool.sandbox() as other:
        outside = pids(other) | {os.getpid(), shared_pool.driver._zygote.process.pid}  # type: ignore[attr-defined]
        warden = min(pids(box))
        assert (await box.run_code(source)).outcome == "ok"
        assert all(os.path.exists(f"/proc/{pid}") for pid in outside)
        assert warden in pids(box)
        await works(box)
        await works(other)


MEET = {
    "abstract_socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX); s.bind('\\0meet'); s.listen()",
        "import socket\nt = socket.socket(socket.AF_UNIX)\ntry: t.connect('\\0meet'); print('met')\nexcept OSError as e: print(e.errno)"),
    "workspace": ("open('meet', 'w').write('x')", "import os; print('met' if os.path.exists('meet') else 2)"),
    "tmp": ("open('/tmp/meet', 'w')", "import os; print('met' if os.path.exists('/tmp/meet') else 2)"),
    "shared_memory": ("from multiprocessing.shared_memory import SharedMemory as S; s = S('meet', True, 9)",
                      "from multiprocessing.shared_memory import SharedMemory as S\ntry: S('meet'); print('met')\nexcept OSError as e: print(e.errno)"),
    "processes": ("import subprocess; p = subprocess.Popen(['sleep', '100'])",
                  "import os; print('met' if any('sleep' in open(f'/proc/{n}/comm').read() for n in os.listdir('/proc') if n.isdigit()) else 2)"),
    "python_cache": ("import sys, os\ntry: open(os.__file__[:-5] + 'meet.py', 'w')\nexcept OSError: pass", "import importlib.util; print('met' if importlib.util.find_spec('meet') else 2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEET)
async def test_two_sandboxes_do_not_meet(shared_pool: SandboxPool, name: str) -> None:
    leave, look = MEET[name]
    async with shared_pool.sandbox() as box, shared_pool.sandbox() as other:
        assert (await box.run_code(leave)).outcome == "ok"
        result = await other.run_code(look)
        assert result.outcome == "ok", result
        assert result.stdout.strip() in ("2", "111")
        if name != "python_cache":  # the control: within one sandbox it is there
            assert (await box.run_code(look)).stdout == "met\n"


async def test_control_network_namespace(nothing_is_left: str) -> None:
    leave, look = MEET["abstract_socket"]
    async with weakened(**WITHOUT["network_namespace"]) as pool, pool.sandbox() as box, pool.sandbox() as other:
        await box.run_code(leave)
        assert (await other.run_code(look)).stdout == "met\n"


async def test_limits_cannot_be_raised(box: Sandbox) -> None:
    source = (
        "import resource\nraised = []\nfor n in range(16):\n  soft, hard = resource.getrlimit(n)\n"
        "  for new in ((hard + 1, hard + 1), (-1, -1)):\n"
        "    if hard != -1:\n      try: resource.setrlimit(n, new); raised.append(n)\n      except (OSError, ValueError): pass\nraised"
    )
    assert (await box.run_code(source)).value == "[]"


async def test_cgroup_cannot_be_seen_or_written(box: Sandbox) -> None:
    facts = await answer(box, "facts")
    for line in facts["cgroup"].splitlines():
        assert line.endswith(":/"), facts["cgroup"]
    assert not any("cgroup" in line for line in facts["mounts"])


async def test_old_and_new_abi_are_refused(box: Sandbox) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("int 0x80 and x32 are of x86-64")
    source = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nprint(f())"
    )
    result = await box.run_code(source)
    assert (result.outcome, result.signal) == ("killed", 31)
    result = await box.run_code("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)")
    assert (result.outcome, result.signal) == ("killed", 31) or "-1" in str(result.value)
    await works(box)


async def test_control_abi(nothing_is_left: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("int 0x80 is of x86-64")
    source = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nprint(f())"
    )
    async with weakened(**WITHOUT["filter"]) as pool, pool.sandbox() as box:
        result = await box.run_code(source)
        assert result.signal != 31
