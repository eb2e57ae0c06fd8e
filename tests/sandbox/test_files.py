"""Files of the workspace, from the host: what is named is what is touched, or an error says why."""

# ruff: noqa: E501, PT012, PT017 - programs for the guest, one per line; errors that need not come

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from sandbox import FileError, PolicyError, Sandbox, SandboxPool

from ..boxes import policy, works

pytestmark = pytest.mark.asyncio(loop_scope="session")
MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 200_000, 5 * MIB])
async def test_bytes_come_back_as_they_were(box: Sandbox, size: int) -> None:
    data = os.urandom(size)
    await box.write_file("a/b/data.bin", data)
    assert await box.read_file("a/b/data.bin") == data
    assert (await box.run_code("import os; os.stat('a/b/data.bin').st_size")).value == str(size)
    await box.write_file("a/b/data.bin", b"short")
    assert await box.read_file("/workspace/a/b/data.bin") == b"short"


NAMES = ["a b", "é漢😀", "-rf", "line\nbreak", "x" * 255, ".hidden", "a\\b", "'\"", "%s", "\x01\x7f", "a/./b", "//c"]


@pytest.mark.parametrize("name", NAMES)
async def test_names(box: Sandbox, name: str) -> None:
    await box.write_file(name.lstrip("/"), "text")
    assert await box.read_file(name.lstrip("/")) == b"text"
    assert [entry.path for entry in await box.list_files()] == [name.lstrip("/").split("/")[0]]


async def test_text_is_utf_8(box: Sandbox) -> None:
    await box.write_file("t", "é")
    assert await box.read_file("t") == "é".encode()


async def test_mode_and_owner(box: Sandbox) -> None:
    await box.write_file("run.sh", "#!/bin/sh\necho ran", mode=0o755)
    assert (await box.run_command(["./run.sh"])).stdout == "ran\n"
    await box.run_code("import os; os.chmod('run.sh', 0o600); open('run.sh', 'a').write('x'); os.remove('run.sh')")
    assert await box.list_files() == []


async def test_listing(box: Sandbox) -> None:
    await box.run_code(
        "import os, socket\nos.mkdir('d'); open('d/in', 'w'); open('f', 'w').write('abc'); os.symlink('/etc/passwd', 'l')\n"
        "os.mkfifo('p'); socket.socket(socket.AF_UNIX).bind('s'); os.utime('f', (5, 5)); os.chmod('f', 0o640)\n"
    )
    entries = await box.list_files()
    assert [(entry.path, entry.kind) for entry in entries] == [
        ("d", "directory"), ("f", "file"), ("l", "symlink"), ("p", "other"), ("s", "other"),
    ]  # fmt: skip
    assert (entries[1].size_bytes, entries[1].mode, entries[1].modified_s) == (3, 0o640, 5.0)
    assert [entry.path for entry in await box.list_files("d")] == ["d/in"]
    assert [entry.path for entry in await box.list_files("/tmp")] == []


async def test_names_that_are_not_text_can_be_listed(box: Sandbox) -> None:
    await box.run_code("open(b'\\xff\\xfe', 'w')")
    (entry,) = await box.list_files()
    entry.path.encode()


SETUP = """
import os, socket
os.mkdir('d'); open('f', 'w').write('inside'); os.mkdir('secret', 0o700)
os.symlink('f', 'to_file'); os.symlink('d', 'to_dir'); os.symlink('/etc/passwd', 'to_passwd'); os.symlink('missing', 'dangling')
os.symlink('/', 'to_root'); os.symlink('/proc/1', 'to_pid1'); os.symlink('loop', 'loop'); os.symlink('/proc/self/root', 'to_self')
os.symlink('/dev/zero', 'to_zero')
os.mkfifo('fifo'); socket.socket(socket.AF_UNIX).bind('sock'); open('locked', 'w'); os.chmod('locked', 0)
"""
E, A = errno, ("read", "write", "list")
REFUSED = {
    "missing": {"read": E.ENOENT, "list": E.ENOENT},
    "d/missing/x": {"read": E.ENOENT, "list": E.ENOENT},
    "f/x": {"read": E.ENOTDIR, "list": E.ENOTDIR, "write": E.ENOTDIR},
    "f": {"list": E.ENOTDIR},
    "d": {"read": E.EISDIR, "write": E.EISDIR},
    ".": {"read": E.EISDIR, "write": E.EISDIR},
    "": {"read": E.EISDIR, "write": E.EISDIR},
    "to_file": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_dir": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_dir/x": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_passwd": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "dangling": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "loop": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_root/etc/passwd": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_self/etc": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "to_zero": {"read": E.ELOOP, "write": E.ELOOP},
    "to_pid1/environ": {"read": E.ELOOP, "write": E.ELOOP, "list": E.ELOOP},
    "fifo": {"read": E.EINVAL, "write": E.EINVAL, "list": E.ENOTDIR},
    "sock": {"read": E.EINVAL, "write": E.EINVAL, "list": E.ENOTDIR},
    "locked": {"read": E.EACCES, "write": E.EACCES},
    "/etc/passwd": dict.fromkeys(A, E.EACCES),
    "/dev/zero": dict.fromkeys(A, E.EACCES),
    "/proc/self/environ": dict.fromkeys(A, E.EACCES),
    "/proc/1/environ": dict.fromkeys(A, E.EACCES),
    "/": dict.fromkeys(A, E.EACCES),
    "//workspace/f": dict.fromkeys(A, E.EACCES),
    "/workspace2/f": dict.fromkeys(A, E.EACCES),
    "../etc/passwd": dict.fromkeys(A, E.EACCES),
    "d/../f": dict.fromkeys(A, E.EACCES),
    "/workspace/../etc/passwd": dict.fromkeys(A, E.EACCES),
    "/tmp/../workspace/f": dict.fromkeys(A, E.EACCES),
    "..": dict.fromkeys(A, E.EACCES),
    "a\0b": dict.fromkeys(A, E.EINVAL),
    "y" * 256: dict.fromkeys(A, E.ENAMETOOLONG),
    "y/" * 2048: dict.fromkeys(A, E.ENAMETOOLONG),
    "y" * 100_000: dict.fromkeys(A, E.ENAMETOOLONG),
    "\udcff\ud800": {"read": E.EINVAL, "write": E.EINVAL, "list": E.EINVAL},
}  # fmt: skip


async def test_refusals_have_the_errno_of_the_kernel(box: Sandbox) -> None:
    await box.run_code(SETUP)
    for path, answers in REFUSED.items():
        for call, number in answers.items():
            with pytest.raises(FileError) as caught:
                await _call(box, call, path)
            assert (caught.value.errno, call, path) == (number, call, path)
            assert caught.value.filename == path
    result = await box.run_code("import os; open('f').read(), os.listdir('d'), os.path.lexists('missing')")
    assert result.value == "('inside', [], False)"
    await works(box)


async def _call(box: Sandbox, call: str, path: str) -> None:
    if call == "write":
        await box.write_file(path, b"x" * 100_000)
    else:
        await (box.read_file(path) if call == "read" else box.list_files(path))


async def test_proc_and_devices_cannot_be_reached_through_a_mount_of_the_guest(box: Sandbox) -> None:
    result = await box.run_code(
        "import os\ntry: os.mknod('zero', 0o20666, os.makedev(1, 5))\nexcept OSError as e: print(e.errno)"
    )
    assert result.stdout == f"{errno.EPERM}\n"


async def test_read_limit(box: Sandbox) -> None:
    await box.write_file("f", b"x" * 100_000)
    assert await box.read_file("f", limit_bytes=100_000) == b"x" * 100_000
    with pytest.raises(FileError) as caught:
        await box.read_file("f", limit_bytes=99_999)
    assert caught.value.errno == errno.EFBIG
    assert await box.read_file("f", limit_bytes=100_000) == b"x" * 100_000


async def test_sparse_terabyte_is_efbig(box: Sandbox) -> None:
    await box.run_code(
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('s', 'wb').truncate(1 << 27)"
    )
    assert len(await box.read_file("s")) == 1 << 27
    with pytest.raises(FileError) as caught:
        await box.read_file("s", limit_bytes=1 << 20)
    assert caught.value.errno == errno.EFBIG


async def test_file_that_grows_while_it_is_read(box: Sandbox) -> None:
    await box.run_code(
        "import threading\nopen('g', 'wb').write(b'x' * 1000)\nstop = False\n"
        "def grow():\n  n = 0\n  with open('g', 'ab', buffering=0) as f:\n    while not stop and n < 200: f.write(b'x' * 65536); n += 1\n"
        "t = threading.Thread(target=grow); t.start()"
    )
    for _ in range(10):
        try:
            data = await box.read_file("g", limit_bytes=MIB)
        except FileError as error:
            assert error.errno == errno.EFBIG
        else:
            assert set(data) == {ord("x")}
            assert len(data) <= MIB
    await box.run_code("stop = True; t.join()")
    await works(box)


async def test_file_that_is_swapped_for_a_link_while_it_is_read(box: Sandbox) -> None:
    await box.run_code(
        "import os, threading\nstop = False\n"
        "def flip():\n  while not stop:\n"
        "    open('t', 'w').write('mine'); os.rename('t', 'f'); os.symlink('/etc/passwd', 't'); os.rename('t', 'f')\n"
        "t = threading.Thread(target=flip); t.start()"
    )
    for _ in range(100):
        try:
            assert await box.read_file("f") in (b"mine", b"")
        except FileError as error:
            assert error.errno in (errno.ELOOP, errno.ENOENT)
    await box.run_code("stop = True; t.join()")
    await works(box)


async def test_write_over_the_file_limit(box: Sandbox, shared_pool: SandboxPool) -> None:
    with pytest.raises(FileError) as caught:
        await box.write_file("big", bytes(shared_pool.policy.limits.file_size_bytes + 1))
    assert caught.value.errno == errno.EFBIG
    await works(box)


async def test_write_to_a_full_disk(box: Sandbox) -> None:
    with pytest.raises(FileError) as caught:
        await box.write_file("big", bytes(33 * MIB))
    assert caught.value.errno == errno.ENOSPC
    await box.run_code("import os; os.remove('big')")
    await box.write_file("small", b"x")
    await works(box)


async def test_too_many_files(nothing_is_left: str) -> None:
    async with SandboxPool(policy("[limits]\nworkspace_files = 100\n")) as pool, pool.sandbox() as box:
        with pytest.raises(FileError) as caught:
            for number in range(200):
                await box.write_file(f"f{number}", b"")
        assert caught.value.errno == errno.ENOSPC
        await works(box)


async def test_ten_thousand_entries(nothing_is_left: str) -> None:
    async with SandboxPool(policy("[limits]\nworkspace_files = 30000\n")) as pool, pool.sandbox() as box:
        await box.run_code("import os\nfor n in range(10_000): os.mknod(f'f{n:05}')")
        entries = await box.list_files()
        assert [entry.path for entry in entries] == [f"f{number:05}" for number in range(10_000)]
        await box.run_code("os.mknod('one_more')")
        with pytest.raises(FileError) as caught:
            await box.list_files()
        assert caught.value.errno == errno.EOVERFLOW
        await works(box)


async def test_guest_that_takes_away_its_workspace(box: Sandbox) -> None:
    await box.run_code("import os; os.chmod('/workspace', 0)")
    for call in ("read", "write", "list"):
        with pytest.raises(FileError) as caught:
            await _call(box, call, "f")
        assert caught.value.errno == errno.EACCES
    await box.run_code("os.chmod('/workspace', 0o755)")
    await box.write_file("f", "x")


async def test_no_file_of_the_host_is_touched(box: Sandbox, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("host")
    await box.run_code(f"import os; os.symlink({str(canary)!r}, 'l'); os.symlink({str(tmp_path)!r}, 'dir')")
    await box.write_file(str(canary), "of the sandbox")  # its /tmp is another one
    for path in ("l", "dir/canary", "dir/new"):
        with pytest.raises(FileError):
            await box.write_file(path, "guest")
        with pytest.raises(FileError):
            await box.read_file(path)
    assert canary.read_text() == "host"
    assert list(tmp_path.iterdir()) == [canary]


@pytest.mark.parametrize("path", [3, None, b"f", Path("f")])
async def test_path_of_a_wrong_type_is_refused(box: Sandbox, path: object) -> None:
    for call in ("read", "write", "list"):
        with pytest.raises(PolicyError, match="path must be a string"):
            await _call(box, call, path)  # type: ignore[arg-type]
    await works(box)


@pytest.mark.parametrize(
    ("data", "mode"), [(3, 0o644), (None, 0o644), ([1], 0o644), ("\ud800", 0o644), ("", -1), ("", "rw"), ("", 0o4755)]
)
async def test_data_or_mode_of_a_wrong_kind_is_refused(box: Sandbox, data: object, mode: object) -> None:
    with pytest.raises(PolicyError):
        await box.write_file("f", data, mode=mode)  # type: ignore[arg-type]
    assert await box.list_files() == []


async def test_file_calls_wait_for_a_step(box: Sandbox) -> None:
    step = asyncio.ensure_future(box.run_code("import time; time.sleep(0.1); open('late', 'w').write('x')"))
    await asyncio.sleep(0)
    assert await box.read_file("late") == b"x"
    assert (await step).outcome == "ok"


async def test_cancelled_transfer_ends_the_sandbox_and_leaves_no_answer_behind(shared_pool: SandboxPool) -> None:
    async with shared_pool.sandbox() as box:
        await box.write_file("f", bytes(8 * MIB))
        task = asyncio.ensure_future(box.read_file("f"))
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await box.reset()
        await box.write_file("g", "new")
        assert await box.read_file("g") == b"new"
