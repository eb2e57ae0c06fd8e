"""The system-call filter against the real kernel, and against a second reading of its table."""

from __future__ import annotations

import builtins
import errno
import functools
import importlib.resources
import itertools
import json
import platform
import random
import signal
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import PolicyError, UnsupportedError
from sandbox.kernel.filter import allowed_calls, compile_filter, explain_filter
from sandbox.policy import Seccomp

pyseccomp = pytest.importorskip("pyseccomp")

MACHINE = platform.machine()
TOKENS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PROTECTED = 252

# Installs the program in argv[1], then becomes the interpreter that runs the file in argv[2].
INSTALL = """
import ctypes, os, sys
program = open(sys.argv[1], "rb").read()
if program:
    class Program(ctypes.Structure):
        _fields_ = [("count", ctypes.c_ushort), ("start", ctypes.c_char_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    installed = Program(len(program) // 8, program)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(installed), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.executable, [sys.executable, "-I", sys.argv[2]])
"""

CALL = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a & (2**64 - 1)) for a in arguments))
    return ctypes.get_errno() if result == -1 else "done"
"""


def run(tmp_path: Path, code: str, program: bytes = b"", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, under this filter if it is not empty."""
    (tmp_path / "filter.bpf").write_bytes(program)
    (tmp_path / "probe.py").write_text(code)
    files = [str(tmp_path / "filter.bpf"), str(tmp_path / "probe.py")]
    return subprocess.run(
        [sys.executable, "-I", "-c", INSTALL, *files],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=tmp_path,
        check=False,
    )


def number_of(name: str) -> int:
    number: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    if number < 0:
        pytest.skip(f"{MACHINE} has no {name}")
    return number


def errno_of(tmp_path: Path, name: str, arguments: tuple[int, ...], program: bytes, setup: str = "") -> Any:
    code = f"{CALL}\n{setup}\nprint(json.dumps(call({number_of(name)}, *{arguments!r})))"
    done = run(tmp_path, code, program)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


@functools.cache
def program(protected_fds_from: int | None = PROTECTED) -> bytes:
    return compile_filter(Seccomp(), protected_fds_from=protected_fds_from)


# ---- what is denied, and that the kernel would have been reached otherwise

BAD = 1  # a pointer that no process has: the kernel answers EFAULT, the filter does not look
DIRTY = 1 << 32
TIOCSTI, TIOCLINUX, TIOCSETD, FICLONE = 0x5412, 0x541C, 0x5423, 0x40049409
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
CLONE_FS, CLONE_PARENT, CLONE_THREAD = 0x200, 0x8000, 0x10000

DENIED = [
    ("unshare", (CLONE_NEWUSER,)),
    ("unshare", (0,)),
    ("setns", (-1, 0)),
    # With flags beside them that the kernel finds contradictory, so that no child is made.
    ("clone", (CLONE_NEWUSER | CLONE_FS, 0, 0, 0, 0)),
    ("clone", (CLONE_NEWUSER | CLONE_FS | DIRTY, 0, 0, 0, 0)),
    ("clone", (CLONE_NEWNS | CLONE_FS, 0, 0, 0, 0)),
    ("clone", (CLONE_NEWNET | CLONE_THREAD, 0, 0, 0, 0)),
    ("clone", (CLONE_PARENT | CLONE_THREAD, 0, 0, 0, 0)),
    ("mount", (BAD, BAD, BAD, 0, BAD)),
    ("umount2", (BAD, 0)),
    ("pivot_root", (BAD, BAD)),
    ("chroot", (BAD,)),
    ("fsopen", (BAD, 0)),
    ("open_tree", (-100, BAD, 0)),
    ("move_mount", (-1, BAD, -1, BAD, 0)),
    ("mount_setattr", (-1, BAD, 0, BAD, 32)),
    ("open_by_handle_at", (-1, BAD, 0)),
    ("name_to_handle_at", (-100, BAD, BAD, BAD, 0)),
    ("ptrace", (0, 0, 0, 0)),
    ("process_vm_readv", (0, BAD, 1, BAD, 1, 0)),
    ("process_vm_writev", (0, BAD, 1, BAD, 1, 0)),
    ("pidfd_getfd", (-1, 0, 0)),
    ("kcmp", (0, 0, 0, 0, 0)),
    ("add_key", (BAD, BAD, 0, 0, 0)),
    ("request_key", (BAD, BAD, BAD, 0)),
    ("keyctl", (9999, 0, 0, 0, 0)),
    ("bpf", (9999, BAD, 8)),
    ("io_uring_setup", (1, BAD)),
    ("io_uring_enter", (-1, 0, 0, 0, 0, 0)),
    ("userfaultfd", (0xFFFF,)),
    ("perf_event_open", (BAD, 0, 0, 0, 0)),
    ("fanotify_init", (0xFFFFFFFF, 0)),
    ("memfd_secret", (0xFFFF,)),
    ("vmsplice", (-1, BAD, 1, 0)),
    ("move_pages", (0, 1, BAD, 0, 0, 0)),
    ("mbind", (0, 0, 99, 0, 0, 0)),
    ("set_mempolicy", (99, 0, 0)),
    ("kexec_load", (0, 99, 0, 0xFFFFFFFF)),
    ("finit_module", (-1, BAD, 0xFFFF)),
    ("clock_settime", (0, BAD)),
    ("settimeofday", (BAD, 0)),
    ("adjtimex", (BAD,)),
    ("sched_setaffinity", (0, 8, BAD)),
    ("sched_setscheduler", (0, 1, BAD)),
    ("sched_setattr", (0, BAD, 0)),
    ("seccomp", (9, 0, 0)),
    ("sync", ()),
    ("mincore", (1, 1, BAD)),
    ("inotify_init1", (0,)),
    ("shmget", (0, 1, 0)),
    ("mq_open", (BAD, 0, 0, 0)),
    ("io_setup", (1, BAD)),
    ("socket", (2, 1, 0)),
    ("socket", (10, 2, 0)),
    ("socket", (16, 3, 0)),  # AF_NETLINK
    ("socket", (38, 5, 0)),  # AF_ALG
    ("socket", (99, 1, 0)),
    ("socket", (1, 3, 0)),  # SOCK_RAW
    ("socketpair", (2, 1, 0, BAD)),
    ("setsockopt", (-1, 1, 26, BAD, 16)),  # SO_ATTACH_FILTER
    ("setsockopt", (-1, 6, 1, BAD, 4)),
    ("ioctl", (-1, TIOCSTI, BAD)),
    ("ioctl", (-1, TIOCSTI | DIRTY, BAD)),
    ("ioctl", (-1, TIOCLINUX, BAD)),
    ("ioctl", (-1, TIOCSETD, BAD)),
    ("ioctl", (-1, FICLONE, 0)),
    ("prctl", (35, 8, 0, 0, 0)),  # PR_SET_MM
    ("prctl", (47, 1, 99, 0, 0)),  # PR_CAP_AMBIENT
    ("prctl", (22, 99, BAD, 0, 0)),  # PR_SET_SECCOMP
    ("prctl", (4, 1, 0, 0, 0)),  # PR_SET_DUMPABLE
    ("prctl", (36, 0, 0, 0, 0)),  # PR_SET_CHILD_SUBREAPER
    ("prctl", (0x53564D41, 0, 1, 0, 0)),  # PR_SET_VMA
    ("personality", (0x0040000,)),  # ADDR_NO_RANDOMIZE
    ("personality", (0,)),
    ("prlimit64", (1, 7, 0, 0)),
    ("setpriority", (0, 1, 19)),
    ("setpriority", (2, 0, 99)),
    ("madvise", (0, 0, 12)),  # MADV_MERGEABLE
    ("membarrier", (1, 0, 0)),  # MEMBARRIER_CMD_GLOBAL
    ("futex", (BAD, 6, 0, 0, 0, 0)),  # FUTEX_LOCK_PI
    ("fcntl", (-1, 1026, 0)),  # F_NOTIFY
    ("fcntl", (-1, 1024, 0)),  # F_SETLEASE
    ("fadvise64", (-1, 0, 0, 4)),  # POSIX_FADV_DONTNEED
    ("mmap", (0, 0, 3, 0x40022, -1, 0)),  # MAP_HUGETLB
    ("memfd_create", (BAD, 4)),  # MFD_HUGETLB
    ("mknodat", (-100, BAD, 0o020666, 0x0103)),  # a character device
    ("mknodat", (-100, BAD, 0o060666, 0x0800)),  # a block device
]


@pytest.mark.parametrize(
    ("name", "arguments"),
    DENIED,
    ids=[f"{name}-{'-'.join(hex(a) for a in arguments)}" for name, arguments in DENIED],
)
def test_denied_call_gives_eperm(tmp_path: Path, name: str, arguments: tuple[int, ...]) -> None:
    assert errno_of(tmp_path, name, arguments, program()) == errno.EPERM
    if errno_of(tmp_path, name, arguments, b"") in (errno.EPERM, errno.ENOSYS):
        pytest.skip(f"denied, but this machine refuses {name} {arguments} without the filter as well")


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("clone3", (BAD, 64), errno.ENOSYS),
        ("sendfile", (-1, -1, 0, 1), errno.ENOSYS),
        ("splice", (-1, 0, -1, 0, 1, 0), errno.ENOSYS),
        ("tee", (-1, -1, 1, 0), errno.ENOSYS),
        ("setxattr", (BAD, BAD, BAD, 0, 0), errno.EOPNOTSUPP),
        ("fsetxattr", (-1, BAD, BAD, 0, 0), errno.EOPNOTSUPP),
    ],
)
def test_denied_call_with_a_substitute_says_so(
    tmp_path: Path, name: str, arguments: tuple[int, ...], answer: int
) -> None:
    assert errno_of(tmp_path, name, arguments, b"") != answer
    assert errno_of(tmp_path, name, arguments, program()) == answer


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("socket", (1, 1, 0)),
        ("socket", (1, 2 | 0o2000000, 0)),
        ("ioctl", (0, 0x5421, BAD)),
        ("ioctl", (0, 0x5421 | DIRTY, BAD)),
        ("prctl", (38, 1, 0, 0, 0)),
        ("personality", (0xFFFFFFFF,)),
        ("prlimit64", (0, 7, 0, 0)),
        ("madvise", (0, 0, 4)),
        ("mknodat", (-100, BAD, 0o010600, 0)),
        ("fchmodat", (-100, BAD, 0)),
        ("getppid", ()),
    ],
)
def test_allowed_call_reaches_the_kernel(tmp_path: Path, name: str, arguments: tuple[int, ...]) -> None:
    assert errno_of(tmp_path, name, arguments, program()) == errno_of(tmp_path, name, arguments, b"")


# ---- other architectures

MACHINE_CODE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex({code!r}))
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print(function())
"""
FOREIGN = {
    "i386": "b814000000cd80c3",  # mov eax, 20 (getpid); int 0x80; ret
    "x32": "b8270000400f05c3",  # mov eax, 0x40000000 | 39 (getpid); syscall; ret
}


@pytest.mark.skipif(MACHINE != "x86_64", reason="machine code for x86-64")
@pytest.mark.parametrize("code", FOREIGN.values(), ids=FOREIGN.keys())
def test_call_of_another_architecture_kills_the_process(tmp_path: Path, code: str) -> None:
    probe = MACHINE_CODE.format(code=code)
    control = run(tmp_path, probe)
    assert control.returncode in (0, -signal.SIGSEGV), control  # a kernel without 32-bit support gives the fault
    assert run(tmp_path, probe, program()).returncode == -signal.SIGSYS


# ---- descriptors that are ours

OPEN_255 = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
ours = os.open("/dev/null", os.O_RDONLY)
if {dup}:
    import fcntl
    fcntl.fcntl(ours, fcntl.F_DUPFD, 255)
"""


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("close", (255,), errno.EBADF),
        ("close", (DIRTY + 255,), errno.EBADF),
        ("dup2", (1, 255), errno.EBADF),
        ("dup2", (1, DIRTY + 255), errno.EBADF),
        ("dup3", (1, 255, 0), errno.EBADF),
        ("dup3", (1, DIRTY + 255, 0), errno.EBADF),
        ("close_range", (3, 0xFFFFFFFF, 0), errno.ENOSYS),
        ("close_range", (255, 255, 0), errno.ENOSYS),
        ("close_range", (3, DIRTY + 255, 0), errno.ENOSYS),
        ("close_range", (3, 2**64 - 1, 0), errno.ENOSYS),
    ],
)
def test_protected_descriptor_cannot_be_closed_or_replaced(
    tmp_path: Path, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    probe = f"""{CALL}{OPEN_255.format(dup=True)}
before = os.fstat(255).st_ino
answer = call({number_of(name)}, *{arguments!r})
try:
    untouched = os.fstat(255).st_ino == before
except OSError:
    untouched = False
print(json.dumps([answer, untouched]))
"""
    assert json.loads(run(tmp_path, probe).stdout) == ["done", False]
    assert json.loads(run(tmp_path, probe, program()).stdout) == [expected, True]


def test_other_descriptors_are_free(tmp_path: Path) -> None:
    probe = f"""{CALL}{OPEN_255.format(dup=False)}
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
os.dup2(ours, 251)
answers = [is_open(251)]
os.close(251)
answers += [is_open(251), call({number_of("close_range")}, 3, 251, 0), is_open(ours)]
print(json.dumps(answers))
"""
    assert json.loads(run(tmp_path, probe, program()).stdout) == [True, False, "done", False]


# ---- ordinary Python does not notice

ORDINARY = {
    "threads": """
import queue, threading
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(lambda n: n * n, range(100))) == 328350
lock, event = threading.RLock(), threading.Event()
worker = threading.Thread(target=lambda: (lock.acquire(timeout=1), lock.release(), event.set()))
worker.start(); assert event.wait(5); worker.join()
""",
    "subprocess": """
import subprocess, sys
assert subprocess.run(["sh", "-c", "echo a | cat; exit 3"], capture_output=True).returncode == 3
assert subprocess.run("ls / | wc -l", shell=True, capture_output=True, text=True, check=True).stdout
child = subprocess.Popen(["sleep", "30"], start_new_session=True)
child.terminate(); assert child.wait() == -15
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=-1, stderr=-1, close_fds=True)
assert b"EOFError" in child.communicate(b"")[1]
try:
    subprocess.run(["sleep", "30"], timeout=0.1)
except subprocess.TimeoutExpired:
    pass
else:
    raise AssertionError
""",
    "processes": """
import os, signal
read, write = os.pipe()
if (pid := os.fork()) == 0:
    os.write(write, b"x"); os._exit(7)
assert os.read(read, 1) == b"x" and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], os.environ)
fd = os.pidfd_open(pid); status = os.waitid(os.P_PIDFD, fd, os.WEXITED); assert status.si_status == 4
os.nice(1); os.getpriority(os.PRIO_PROCESS, 0); os.setpgid(0, 0); os.sched_getaffinity(0); os.sched_yield()
""",
    "multiprocessing": """
import multiprocessing as mp
from multiprocessing import shared_memory
def square(n):
    return n * n
def main():
    for method in ("fork", "spawn", "forkserver"):
        with mp.get_context(method).Pool(2) as pool:
            assert pool.map(square, range(10))[-1] == 81
    with mp.Manager() as manager:
        shared = manager.dict(); shared["a"] = 1; assert dict(shared) == {"a": 1}
    block = shared_memory.SharedMemory(create=True, size=100_000)
    block.buf[0] = 7; block.close(); block.unlink()
    q = mp.Queue(); q.put(1); assert q.get(timeout=5) == 1
    with mp.Semaphore(2), mp.Lock(), mp.Condition():
        pass
if __name__ == "__main__":
    main()
""",
    "asyncio": """
import asyncio, sys, tempfile, os
async def echo(reader, writer):
    writer.write(await reader.readline()); await writer.drain(); writer.close()
async def main():
    process = await asyncio.create_subprocess_exec("sh", "-c", "cat", stdin=-1, stdout=-1)
    assert (await process.communicate(b"hello"))[0] == b"hello"
    name = os.path.join(tempfile.mkdtemp(dir="."), "s")
    server = await asyncio.start_unix_server(echo, name)
    reader, writer = await asyncio.open_unix_connection(name)
    writer.write(b"line\\n"); assert await reader.readline() == b"line\\n"
    writer.close(); server.close()
    assert await asyncio.to_thread(sum, [1, 2]) == 3
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(100)))
    asyncio.get_running_loop().add_signal_handler(10, lambda: None)
asyncio.run(main())
""",
    "sqlite3": """
import sqlite3
for mode in ("delete", "wal"):
    with sqlite3.connect(f"{mode}.db") as db:
        db.execute(f"pragma journal_mode={mode}")
        db.execute("create table t (a)")
        db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
        db.commit(); assert db.execute("select sum(a) from t").fetchone() == (499500,)
        db.execute("vacuum")
    db.close()
""",
    "files": """
import fcntl, glob, mmap, os, pathlib, shutil, stat, tempfile, time, zipfile, tarfile
file, other = tempfile.NamedTemporaryFile(), tempfile.TemporaryFile()
with file, other, tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    (root / "a" / "b").mkdir(parents=True); (root / "a" / "f").write_bytes(b"x" * 300_000)
    (root / "a" / "l").symlink_to("f"); os.link(root / "a" / "f", root / "a" / "h")
    shutil.copytree(root / "a", root / "c", symlinks=True); shutil.move(root / "c", root / "d")
    assert (root / "d" / "f").read_bytes() == (root / "a" / "f").read_bytes()
    shutil.make_archive(str(root / "z"), "zip", root / "a")
    shutil.make_archive(str(root / "t"), "gztar", root / "a")
    checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
    shutil.unpack_archive(root / "t.tar.gz", root / "u", **checked)
    os.chmod(root / "a" / "f", 0o600); os.chown(root / "a" / "f", -1, -1)
    os.utime(root / "a" / "f", ns=(1, 2)); os.utime(root / "a" / "l", follow_symlinks=False)
    os.truncate(root / "a" / "f", 10); os.statvfs(name); os.listxattr(name); shutil.disk_usage(name)
    os.mkfifo(root / "p"); assert stat.S_ISFIFO(os.stat(root / "p").st_mode)
    fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.truncate(8192); os.fsync(other.fileno()); os.posix_fallocate(other.fileno(), 0, 100)
    os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    with mmap.mmap(other.fileno(), 8192) as view:
        view[:3] = b"abc"; view.flush(); view.madvise(mmap.MADV_WILLNEED)
    os.preadv(other.fileno(), [bytearray(3)], 0); os.pwritev(other.fileno(), [b"abc"], 0)
    os.copy_file_range(other.fileno(), file.fileno(), 3)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY); assert os.listdir(fd); os.stat("a", dir_fd=fd)
    os.rename("a", "renamed", src_dir_fd=fd, dst_dir_fd=fd); os.close(fd)
    assert os.access(name, os.W_OK) and list(os.scandir(name)) and glob.glob(name + "/**", recursive=True)
assert not os.path.exists(name)
""",
    "waiting": """
import os, select, selectors, socket, time
a, b = socket.socketpair(); a.setblocking(False); a.sendall(b"x"); b.settimeout(1)
assert select.select([b], [], [], 1)[0]
epoll = select.epoll(); epoll.register(b, select.EPOLLIN); assert epoll.poll(1); epoll.close()
poll = select.poll(); poll.register(b, select.POLLIN); assert poll.poll(1000)
assert b.recv(1) == b"x"; a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096); a.getsockopt(1, 3)
socket.send_fds(a, [b"y"], [0]); assert socket.recv_fds(b, 1, 1)[1]
with open(__file__, "rb") as file:
    a.setblocking(True); assert a.sendfile(file, count=10) == 10
os.eventfd(0)
""",
    "numbers": """
import decimal, random, secrets, time, uuid, hashlib, ctypes, ctypes.util, os, platform, resource, sys, locale
assert decimal.Decimal(2).sqrt() and random.random() < 1 and secrets.token_bytes(8) and uuid.uuid4()
assert time.time() and time.monotonic() and time.process_time() and time.thread_time(); time.sleep(0.01)
libc = ctypes.CDLL(None); assert libc.getpid() == os.getpid()
callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1); assert callback(1) == 2
platform.platform(); os.uname(); os.cpu_count(); os.sysconf("SC_PAGE_SIZE")
resource.getrusage(resource.RUSAGE_SELF); resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.times()
sys.stdout.isatty(); os.getgroups(); os.getresuid(); os.umask(0o77); os.memfd_create("m")
""",
    "signals": """
import signal, threading, time, faulthandler
caught = []
signal.signal(signal.SIGALRM, lambda *_: caught.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause(); assert caught
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); signal.raise_signal(signal.SIGUSR1)
assert signal.SIGUSR1 in signal.sigpending() and signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
assert signal.sigtimedwait({signal.SIGUSR1}, 0.01) is None
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.pthread_kill(threading.get_ident(), signal.SIGINT); time.sleep(1)
except KeyboardInterrupt:
    pass
faulthandler.enable()
""",
    "terminals": """
import os, pty, subprocess, termios
leader, follower = pty.openpty()
termios.tcsetattr(follower, termios.TCSANOW, termios.tcgetattr(follower)); os.get_terminal_size(follower)
assert os.isatty(follower) and os.ttyname(follower)
""",
    "numpy": """
import importlib.util, sys
if importlib.util.find_spec("numpy"):
    import numpy as np
    a = np.random.default_rng(0).random((600, 600))
    assert np.linalg.norm(a @ np.linalg.inv(a) - np.eye(600)) < 1e-3 and np.zeros(50_000_000).sum() == 0
""",
}


@pytest.mark.parametrize("code", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_python_works_under_the_filter(tmp_path: Path, code: str) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
    done = run(tmp_path, limit + code, program())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        "cp -pL $(command -v sh) here && cp -a here again && cat here | tee there | sort | uniq | wc -c",
        "mkdir -p a/b && touch a/b/c && mv a/b/c a/d && rm -r a && date && env && uname -a",
        "seq 10 | xargs -n1 echo | sed s/1/2/ | grep 2 | head -n2 | tail -n1 | tr 2 3 | cut -c1",
        "tar cf x.tar /bin/sh && tar tf x.tar && find . -type f -exec ls -la {} +",
        "git init -q . && git config user.email a@b && git config user.name a && touch f && git add f && "
        "git commit -qm x && git log --oneline && git gc -q && git status",
    ],
    ids=["copy", "files", "text", "archives", "git"],
)
def test_ordinary_commands_work_under_the_filter(tmp_path: Path, command: str) -> None:
    code = f"import subprocess, sys\nsys.exit(subprocess.run({command!r}, shell=True, stdout=-3).returncode)"
    control = run(tmp_path, code)
    if control.returncode != 0:
        pytest.skip(f"this machine cannot run it: {control.stderr}")
    for leftover in list(tmp_path.iterdir()):
        subprocess.run(["rm", "-rf", str(leftover)], check=True)
    done = run(tmp_path, code, program())
    assert (done.returncode, done.stderr) == (0, control.stderr)


# ---- the compiled program against a second reading of the table, for both architectures

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000


def interpret(instructions: list[tuple[int, int, int, int]], data: bytes) -> int:
    """Run a classic BPF program over a `struct seccomp_data`. Only what libseccomp emits."""
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x25:
                at += if_true if accumulator > k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x45:
                at += if_true if accumulator & k else if_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def read_table() -> dict[str, Any]:
    text = importlib.resources.files("sandbox.kernel").joinpath("syscalls.toml").read_text()
    return tomllib.loads(text)


def expected(table: dict[str, Any], name: str | None, arguments: list[int], protected: int | None) -> int:
    groups = [table["groups"][group] for group in Seccomp().allow]
    if name is None or name not in set(itertools.chain(*groups)):
        answers = [getattr(errno, answer) for answer, calls in table["answers"].items() if name in calls]
        answer: int = (answers or [errno.EPERM])[0]
        return ERRNO | answer
    closed = {"close": 0, "dup2": 1, "dup3": 1, "close_range": 1}.get(name)
    if protected is not None and closed is not None and arguments[closed] >= protected:
        return ERRNO | (errno.ENOSYS if name == "close_range" else errno.EBADF)
    rules = [rule for rule in table["rules"] if name in rule["syscalls"]]
    passes = any(
        all(arguments[c["arg"]] & c.get("mask", 0xFFFFFFFF) in c["is"].values() for c in rule["where"])
        for rule in rules
    )
    return ALLOW if passes or not rules else ERRNO | errno.EPERM


def interesting_values(table: dict[str, Any]) -> list[int]:
    values = {value for rule in table["rules"] for c in rule["where"] for value in c["is"].values()}
    values |= {0, 1, 17, 251, 252, 255, 2**31, 2**32 - 1, CLONE_NEWUSER | 17, 0x40022, TIOCSTI}
    return sorted(values)


@pytest.mark.parametrize("protected", [None, PROTECTED])
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_program_decides_as_the_table_says(architecture: str, protected: int | None) -> None:
    table = read_table()
    compiled = compile_filter(Seccomp(), protected_fds_from=protected, architecture=architecture)
    instructions = list(struct.iter_unpack("<HBBI", compiled))
    assert len(instructions) < 4096
    names = set(itertools.chain(*table["groups"].values(), *table["answers"].values()))
    names |= set(table["refused"])
    numbers = {pyseccomp.resolve_syscall(TOKENS[architecture], name): name for name in names}
    if architecture == MACHINE:
        numbers |= {number: name for name, number in table["numbers"].items()}
    values, source = interesting_values(table), random.Random(7)
    for number in range(600):
        name = numbers.get(number)
        for _ in range(400 if name in {call for rule in table["rules"] for call in rule["syscalls"]} else 20):
            arguments = [source.choice(values) for _ in range(6)]
            if source.random() < 0.3:
                arguments = [value | source.getrandbits(32) << 32 for value in arguments]
            data = struct.pack("<IIQ6Q", number, TOKENS[architecture], 0, *arguments)
            decision = interpret(instructions, data)
            assert decision == expected(table, name, arguments, protected), (number, name, arguments)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_program_kills_on_every_other_architecture(architecture: str) -> None:
    instructions = list(struct.iter_unpack("<HBBI", compile_filter(Seccomp(), architecture=architecture)))
    for token in (0x40000003, 0x40000028, 0, 0xFFFFFFFF, *TOKENS.values()):
        decision = interpret(instructions, struct.pack("<IIQ6Q", 0, token, 0, *[0] * 6))
        assert (decision == KILL) is (token != TOKENS[architecture])


# ---- the table itself


def test_no_group_holds_a_refused_call_and_every_rule_concerns_a_group() -> None:
    table = read_table()
    grouped = list(itertools.chain(*table["groups"].values()))
    assert len(grouped) == len(set(grouped))
    assert not set(grouped) & set(table["refused"])
    assert {name for rule in table["rules"] for name in rule["syscalls"]} <= set(grouped)
    for rule in table["rules"]:
        assert rule["why"]
        for condition in rule["where"]:
            mask = condition.get("mask", 0xFFFFFFFF)
            assert all(value & mask == value for value in condition["is"].values()), rule


def test_numbers_of_new_calls_agree_with_libseccomp_where_it_knows_them() -> None:
    for name, number in read_table()["numbers"].items():
        for token in TOKENS.values():
            assert pyseccomp.resolve_syscall(token, name) in (-1, number)


def test_every_default_group_exists_and_rules_are_reported() -> None:
    calls = allowed_calls(Seccomp())
    assert calls["read"] is False
    assert calls["ioctl"] is True
    assert "sched_setaffinity" not in calls
    assert "ioctl" not in allowed_calls(Seccomp(), deny=["ioctl"])


def test_deny_takes_away(tmp_path: Path) -> None:
    without = compile_filter(Seccomp(), deny=["@local-sockets"])
    assert errno_of(tmp_path, "socket", (1, 1, 0), without) == errno.EPERM
    assert errno_of(tmp_path, "socketpair", (1, 1, 0, BAD), without) == errno.EFAULT


def test_misspelt_name_to_deny_is_an_error() -> None:
    with pytest.raises(PolicyError, match='no system call "memfd_creat"; did you mean "memfd_create"'):
        compile_filter(Seccomp(), deny=["memfd_creat"])


def test_single_call_added_by_name_keeps_its_rule(tmp_path: Path) -> None:
    more = compile_filter(Seccomp(allow=(*Seccomp().allow, "inotify_init1", "sendfile", "ioctl")))
    assert errno_of(tmp_path, "inotify_init1", (0,), more) == "done"
    assert errno_of(tmp_path, "sendfile", (-1, -1, 0, 0), more) == errno.EBADF
    assert errno_of(tmp_path, "ioctl", (-1, TIOCSTI, BAD), more) == errno.EPERM


@pytest.mark.parametrize(
    ("allow", "says"),
    [
        (("@basik",), 'there is no group "@basik"; did you mean "@basic"?'),
        (("opennat",), 'there is no system call "opennat"; did you mean "openat"?'),
        (("zzzzzzzz",), 'there is no system call "zzzzzzzz"; sandbox/kernel/syscalls.toml lists'),
        (("clone3",), "clone3 cannot be allowed: its flags lie in memory"),
        (("@basic", "unshare"), "unshare cannot be allowed: new namespaces"),
    ],
)
def test_wrong_name_is_a_policy_error_with_a_remedy(allow: tuple[str, ...], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        compile_filter(Seccomp(allow=allow))
    assert str(caught.value).startswith(f"seccomp.allow: {says}")


def test_call_that_only_another_architecture_has_is_left_out() -> None:
    base = Seccomp(allow=("read",))
    more = Seccomp(allow=("read", "_llseek", "sigaction"))
    assert compile_filter(base) == compile_filter(more)


def test_filter_is_the_same_every_time_and_can_be_read() -> None:
    assert compile_filter(Seccomp()) == compile_filter(Seccomp())
    text = explain_filter(Seccomp(), protected_fds_from=PROTECTED)
    assert 'filter for syscall "openat"' in text
    assert "action KILL_PROCESS" in text


def test_unknown_machine_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no system-call filter for sparc64; use a machine with"):
        compile_filter(Seccomp(), architecture="sparc64")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (ImportError("no module"), "the package pyseccomp; install it: pip install"),
        (RuntimeError("Unable to find libseccomp"), "without libseccomp; install the system's package"),
    ],
)
def test_missing_library_is_unsupported(monkeypatch: pytest.MonkeyPatch, fault: Exception, says: str) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pyseccomp":
            raise fault
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnsupportedError, match=says):
        compile_filter(Seccomp())
