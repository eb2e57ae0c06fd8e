"""Control groups against the real kernel, on whatever versions this machine has mounted.

Longer than files here are, because every part needs the same helpers to get a process into a slot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import UnsupportedError
from sandbox.kernel.cgroups import CgroupLimits, Cgroups, Slot, open_cgroups, remove_stale, tree, v2
from sandbox.kernel.cgroups.mounts import Mount, own_directory, parse_membership, parse_mountinfo
from sandbox.kernel.cgroups.owner import Tree, find_trees
from sandbox.kernel.cgroups.server import open_trees

PREFIX = f"openenv-test-{os.getpid()}"
REPOSITORY = str(Path(__file__).resolve().parents[2])
MIB = 1 << 20
LIMITS = CgroupLimits(memory_bytes=64 * MIB, tasks=16, cpu_cores=1.0)
SLEEP = "import time; time.sleep(60)"

_CLONE3 = 435
_CLONE_INTO_CGROUP = 0x200000000
CLONE_INTO = f"""
import ctypes, os, struct
libc = ctypes.PyDLL(None, use_errno=True)
def clone_into(fd):
    args = ctypes.create_string_buffer(struct.pack("11Q", {_CLONE_INTO_CGROUP}, *[0]*3, 17, *[0]*5, fd))
    pid = libc.syscall({_CLONE3}, args, 88)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid
"""
exec(CLONE_INTO)


def spawn(slot: Slot, code: str, stdout: int | None = None) -> int:
    """A Python inside the slot that runs `code`, once it is inside; it gets in as a sandbox does."""
    until_exec, at_exec = os.pipe()
    pid = globals()["clone_into"](slot.clone_fd) if slot.clone_fd is not None else os.fork()
    if pid == 0:
        try:
            for fd in slot.attach_fds:
                os.write(fd, b"0")
            if stdout is not None:
                os.dup2(stdout, 1)
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code])
        finally:
            os._exit(99)
    os.close(at_exec)
    os.read(until_exec, 1)
    os.close(until_exec)
    return pid


def output_of(slot: Slot, code: str) -> str:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        pid = spawn(slot, code, writer)
        os.close(writer)
        text = stream.read()
    os.waitpid(pid, 0)
    return text.strip()


def until(condition, within_s: float = 2.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    try:
        opened = open_cgroups(PREFIX)
    except UnsupportedError as error:
        pytest.skip(str(error))
    try:
        with opened:
            yield opened
        assert left_over() == []
    finally:
        remove_stale(PREFIX)


def left_over() -> list[str]:
    points = {mount.point for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text())}
    return [
        f"{directory}/{name}"
        for point in points
        for directory, names, _ in os.walk(point)
        for name in names
        if name.startswith(PREFIX)
    ]


# --- finding -----------------------------------------------------------------------------------------------

SPLIT_V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CONTAINER_V1 = """\
32 31 0:29 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro,nosuid shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
36 31 0:33 /docker/ab /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
"""
PURE_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
ALL = frozenset({"memory", "pids", "cpu"})


def test_split_v1_controllers_are_found_each_in_its_tree() -> None:
    found = find_trees(SPLIT_V1, "4:memory:/app\n8:pids:/\n1:cpu:/\n0::/\n", ALL)
    assert {(each.mount.version, *each.controllers, each.own) for each in found} == {
        (1, "cpu", "/sys/fs/cgroup/cpu"),
        (1, "memory", "/sys/fs/cgroup/memory/app"),
        (1, "pids", "/sys/fs/cgroup/pids"),
    }


def test_controllers_mounted_together_are_one_tree_and_container_paths_are_translated() -> None:
    found = find_trees(CONTAINER_V1, "2:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab/sub\n4:pids:/docker/ab\n", ALL)
    assert {(each.controllers, each.own) for each in found} == {
        (frozenset({"cpu", "cpuacct"}), "/sys/fs/cgroup/cpu,cpuacct"),
        (frozenset({"memory"}), "/sys/fs/cgroup/memory/sub"),
        (frozenset({"pids"}), "/sys/fs/cgroup/pids"),
    }


def test_controllers_without_a_v1_mount_come_from_v2() -> None:
    hybrid = "".join(line for line in SPLIT_V1.splitlines(keepends=True) if "memory" not in line)
    found = find_trees(hybrid, "8:pids:/\n1:cpu:/\n0::/user.slice\n", ALL)
    assert [(each.controllers, each.own) for each in found if each.mount.version == 2] == [
        (frozenset({"memory"}), "/sys/fs/cgroup/unified/user.slice")
    ]


def test_pure_v2_is_one_tree() -> None:
    (found,) = find_trees(PURE_V2, "0::/system.slice/openenv.service\n", ALL)
    assert (found.controllers, found.own) == (ALL, "/sys/fs/cgroup/system.slice/openenv.service")


@pytest.mark.parametrize(
    ("root", "path", "directory"),
    [
        ("/", "/", "/m"),
        ("/", "/a/b", "/m/a/b"),
        ("/a", "/a", "/m"),
        ("/a", "/a/b", "/m/b"),
        ("/a", "/ab", None),
        ("/docker/ab", "/", None),
        ("/../..", "/", None),
        ("/", "/../x", None),
    ],
)
def test_own_directory_under_a_mount(root: str, path: str, directory: str | None) -> None:
    mount = Mount(version=2, controllers=frozenset(), root=root, point="/m")
    assert own_directory(mount, {"": path}) == directory


def test_v2_groups_above_our_namespace_are_not_used() -> None:
    (found,) = find_trees("30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 none rw", "0::/\n", ALL)
    assert found.bases() == []


def test_mountinfo_escapes_and_membership_lists() -> None:
    (mount,) = parse_mountinfo(r"30 23 0:26 /a\040b /mnt/c\040d rw - cgroup2 none rw")
    assert (mount.root, mount.point) == ("/a b", "/mnt/c d")
    assert parse_membership("2:cpu,cpuacct:/x:y\n0::/z\n") == {"cpu": "/x:y", "cpuacct": "/x:y", "": "/z"}


def test_missing_controllers_are_named_with_the_remedy(tmp_path: Path) -> None:
    nowhere = Mount(version=1, controllers=frozenset({"memory"}), root="/", point=str(tmp_path / "none"))
    gone = Tree(mount=nowhere, controllers=nowhere.controllers, own=None)
    with pytest.raises(UnsupportedError, match=r"cpu: not mounted; memory: .*none.*; pids: not mounted.*Delegate=yes"):
        open_trees([gone], PREFIX, controllers=ALL)


def test_an_ordinary_user_is_told_what_is_missing() -> None:
    code = (
        "import os\nfrom sandbox.kernel.cgroups import open_cgroups\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"open_cgroups({PREFIX!r}).close()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if os.geteuid() != 0 and done.returncode == 0:
        pytest.skip("nothing is missing: this user was handed a cgroup")
    last = done.stderr.splitlines()[-1]
    assert "UnsupportedError" in last
    for word in ("cpu: ", "memory: ", "pids: ", "systemd-run --user --scope -p Delegate=yes"):
        assert word in last


def test_only_a_plain_name_is_a_prefix() -> None:
    for bad in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="prefix"):
            open_trees([], bad, controllers=ALL)


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(None, (None, 20_000)), (1.0, (20_000, 20_000)), (2.5, (50_000, 20_000)), (0.01, (1_000, 100_000))],
)
def test_bandwidth(cores: float | None, expected: tuple[int | None, int]) -> None:
    assert CgroupLimits(cpu_cores=cores).bandwidth_us() == expected


@pytest.mark.parametrize("wrong", [{"memory_bytes": 0}, {"tasks": -1}, {"cpu_cores": 0.0}, {"cpu_cores": float("nan")}])
def test_senseless_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        CgroupLimits(**wrong)


def test_memory_bomb_is_killed_at_the_limit_and_counted(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    pid = spawn(slot, "x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert slot.oom_kills() == 1
    peak = slot.memory_peak_bytes()
    assert peak is None or 60 * MIB < peak <= 64 * MIB
    assert not slot.populated()


def test_memory_below_the_limit_is_allowed(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    assert output_of(slot, "x = bytearray(40 << 20); print(len(x))") == str(40 * MIB)
    assert slot.oom_kills() == 0


def test_fork_bomb_stops_at_the_limit(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(CgroupLimits(memory_bytes=256 * MIB, tasks=5, cpu_cores=1.0))
    code = (
        "import os, time\nn = 0\n"
        "try:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except OSError as error: print(n, error.errno)"
    )
    assert output_until_first_line(slot, code) == f"4 {errno.EAGAIN}"
    assert until(lambda: slot.tasks() == 4)  # the children; their parent has printed and gone
    slot.kill()
    assert until(lambda: not slot.populated())


def output_until_first_line(slot: Slot, code: str) -> str:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        pid = spawn(slot, code + "\nimport sys; sys.stdout.flush()\n", writer)
        os.close(writer)
        line = stream.readline()
    os.waitpid(pid, 0)
    return line.strip()


def test_cpu_share_holds_for_several_processes(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(CgroupLimits(memory_bytes=256 * MIB, tasks=16, cpu_cores=0.4))
    pids = [spawn(slot, "while True: pass") for _ in range(2)]
    assert until(lambda: (slot.cpu_s() or 0) > 0)
    before, began = slot.cpu_s(), time.monotonic()
    time.sleep(0.6)
    after, ended = slot.cpu_s(), time.monotonic()
    slot.kill()
    for pid in pids:
        os.waitpid(pid, 0)
    assert before is not None
    assert after is not None
    assert (after - before) / (ended - began) < 0.5


def test_a_group_without_quota_left_dies_at_once(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(CgroupLimits(memory_bytes=256 * MIB, tasks=16, cpu_cores=0.002))  # 1 ms in 500
    pids = [spawn(slot, "while True: pass") for _ in range(2)]
    time.sleep(0.05)
    began = time.monotonic()
    slot.kill()
    for pid in pids:
        os.waitpid(pid, 0)
    assert time.monotonic() - began < 0.25
    assert cgroups.release(slot) or cgroups.sweep() == 0
    assert cgroups.acquire(slot.limits) is slot  # and has its limits again
    fresh = CgroupLimits().bandwidth_us()
    assert slot.limits.bandwidth_us() != fresh
    assert "1000" in written_cpu_limit(cgroups, slot)


def written_cpu_limit(cgroups: Cgroups, slot: Slot) -> str:
    for directory in cgroups.directories:
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            with contextlib.suppress(FileNotFoundError):
                return Path(directory, slot.name, name).read_text()
    raise AssertionError("no cpu limit")


def test_swap_counts_as_memory(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    values = [
        Path(directory, slot.name, name).read_text().strip()
        for directory in cgroups.directories
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max")
        if Path(directory, slot.name, name).exists()
    ]
    assert values in ([], [str(64 * MIB)], ["0"])


def test_limits_that_no_controller_holds_are_refused() -> None:
    with unified_cgroups() as cgroups, pytest.raises(UnsupportedError, match="not in use: cpu, memory, pids"):
        cgroups.acquire(LIMITS)


# --- slots -------------------------------------------------------------------------------------------------


def test_counters_are_of_one_use_and_slots_are_used_again(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    output_of(slot, "x = bytearray(30 << 20)\nfor i in range(10**6): pass")
    used = slot.usage()
    assert used.cpu_s is None or used.cpu_s > 0.01
    assert used.memory_peak_bytes is None or used.memory_peak_bytes > 30 * MIB
    descriptors = (slot.attach_fds, slot.clone_fd)
    assert until(lambda: slot.tasks() == 0)
    assert cgroups.release(slot)
    again = cgroups.acquire(LIMITS)
    assert again is slot
    assert (again.attach_fds, again.clone_fd) == descriptors
    assert again.cpu_s() in (None, 0.0)
    peak = again.memory_peak_bytes()
    assert peak is None or peak < 2 * MIB
    assert again.oom_kills() == 0


def test_two_sandboxes_at_once_have_two_slots(cgroups: Cgroups) -> None:
    assert cgroups.acquire(LIMITS) is not cgroups.acquire(LIMITS)


@pytest.mark.parametrize("memory_bytes", [32 * MIB, 128 * MIB])
def test_an_idle_slot_takes_other_limits(cgroups: Cgroups, memory_bytes: int) -> None:
    slot = cgroups.acquire(LIMITS)
    assert cgroups.release(slot)
    other = cgroups.acquire(CgroupLimits(memory_bytes=memory_bytes, tasks=3, cpu_cores=0.5))
    assert other is slot
    pid = spawn(other, "x = []\nwhile True: x.append(bytearray(1 << 20))")
    os.waitpid(pid, 0)
    assert other.oom_kills() == 1
    peak = other.memory_peak_bytes()
    assert peak is None or memory_bytes - 4 * MIB < peak <= memory_bytes


def test_release_kills_what_is_left_and_sweep_finishes(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    pid = spawn(slot, SLEEP)
    assert cgroups.release(slot) is False
    os.waitpid(pid, 0)
    assert cgroups.acquire(LIMITS) is not slot
    assert until(lambda: cgroups.sweep() == 0)
    assert cgroups.acquire(LIMITS) is slot


def test_a_slot_is_released_once(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(LIMITS)
    assert cgroups.release(slot)
    with pytest.raises(KeyError):
        cgroups.release(slot)


def test_memory_left_behind_is_not_passed_on(cgroups: Cgroups, tmp_path: Path) -> None:
    slot = cgroups.acquire(LIMITS)
    output_of(slot, f"f = open({str(tmp_path / 'cached')!r}, 'wb'); f.write(bytes(20 << 20)); f.close()")
    if (slot.memory_bytes() or 0) < 10 * MIB:
        pytest.skip("this file system does not charge its cache")
    assert cgroups.release(slot) is False
    for _ in range(4):
        cgroups.sweep()
    assert cgroups.sweep() == 0
    fresh = cgroups.acquire(LIMITS)
    assert fresh is not slot
    assert (fresh.memory_bytes() or 0) < MIB


def test_kill_outruns_a_fork_bomb(cgroups: Cgroups) -> None:
    slot = cgroups.acquire(CgroupLimits(memory_bytes=256 * MIB, tasks=40, cpu_cores=1.0))
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    pid = spawn(slot, code)
    assert until(lambda: (slot.tasks() or 0) >= 20)
    slot.kill()
    os.waitpid(pid, 0)
    assert until(lambda: not slot.populated())


def test_every_descriptor_is_closed_on_exec(cgroups: Cgroups) -> None:
    cgroups.acquire(LIMITS)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if PREFIX in target:
                assert fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC, target


def test_a_slot_that_cannot_be_made_leaves_nothing(cgroups: Cgroups) -> None:
    blocked = f"{cgroups.directories[-1]}/s0"
    os.mkdir(blocked)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileExistsError):
        cgroups.acquire(LIMITS)
    assert os.listdir("/proc/self/fd") == before
    assert [path for path in cgroups.directories[:-1] if os.path.exists(f"{path}/s0")] == []
    assert cgroups.acquire(LIMITS).name == "s1"


def test_running_out_of_descriptors_leaves_nothing(cgroups: Cgroups) -> None:
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = sorted(set(range(len(before) + 100)) - {int(name) for name in before})
    for spare in range(1, 4):
        resource.setrlimit(resource.RLIMIT_NOFILE, (unused[spare], hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                cgroups.acquire(LIMITS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir("/proc/self/fd") == before
    assert all(not child.is_dir() for path in cgroups.directories for child in os.scandir(path))


def test_trim_removes_idle_slots(cgroups: Cgroups) -> None:
    slots = [cgroups.acquire(LIMITS) for _ in range(4)]
    for slot in slots[:3]:
        assert cgroups.release(slot)
    cgroups.trim(keep=1)
    groups = [child for child in os.scandir(cgroups.directories[0]) if child.is_dir()]
    assert len(groups) == 2


# --- owners ------------------------------------------------------------------------------------------------


def test_close_ends_and_removes_everything_and_may_be_repeated() -> None:
    try:
        cgroups = open_cgroups(PREFIX)
    except UnsupportedError as error:
        pytest.skip(str(error))
    slot = cgroups.acquire(LIMITS)
    pid = spawn(slot, SLEEP)
    cgroups.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    cgroups.close()
    assert left_over() == []
    with pytest.raises(ValueError, match="closed"):
        cgroups.acquire(LIMITS)


def test_two_servers_do_not_meet(cgroups: Cgroups) -> None:
    with open_cgroups(PREFIX) as other:
        assert not set(other.directories) & set(cgroups.directories)
        slot = cgroups.acquire(LIMITS)
        assert remove_stale(PREFIX) == []
    assert slot.populated() is False
    assert all(os.path.exists(path) for path in cgroups.directories)


DEAD_SERVER = f"""
import os, sys, time
from sandbox.kernel.cgroups import CgroupLimits, open_cgroups
cgroups = open_cgroups({PREFIX!r})
sleeper = os.fork()
if sleeper == 0:
    os.close(1)
    time.sleep(60)
cgroups.adopt(sleeper)
cgroups.acquire(CgroupLimits(memory_bytes=64 << 20, tasks=16, cpu_cores=1.0))
print(sleeper, *cgroups.directories, flush=True)
time.sleep(60)
"""


def test_a_restarted_server_removes_what_a_dead_one_left(cgroups: Cgroups) -> None:
    server = subprocess.Popen([sys.executable, "-c", DEAD_SERVER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        sleeper, *directories = server.stdout.readline().split()
        assert remove_stale(PREFIX) == []  # it lives
    finally:
        server.kill()
        server.communicate()
    assert all(os.path.exists(path) for path in directories)
    # Its sleeper was forked without exec and still holds the lock: end that first, as a jail would have.
    os.kill(int(sleeper), signal.SIGKILL)
    assert until(lambda: tree.start_time(int(sleeper)) is None)
    assert sorted(remove_stale(PREFIX)) == sorted(directories)
    assert not any(os.path.exists(path) for path in directories)
    assert all(os.path.exists(path) for path in cgroups.directories)


def test_what_a_dead_server_left_running_is_killed(cgroups: Cgroups) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    start = tree.start_time(dead.pid)
    dead.wait()
    slot = cgroups.acquire(LIMITS)
    parent = os.path.dirname(cgroups.directories[0])
    owner = f"{parent}/{dead.pid}-{start}-0"
    os.mkdir(owner)
    sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEP])
    try:
        os.mkdir(f"{owner}/s0")
        tree.write(f"{owner}/s0/cgroup.procs", str(sleeper.pid))
        lock = os.open(owner, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_stale(PREFIX) == []  # a server of another pid namespace holds it
        os.close(lock)
        assert remove_stale(PREFIX) == [owner]
        assert sleeper.wait(2) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
        tree.remove(owner)
    assert not slot.populated()


def test_adopted_processes_are_inside_and_end_with_close() -> None:
    try:
        cgroups = open_cgroups(PREFIX)
    except UnsupportedError as error:
        pytest.skip(str(error))
    jail = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEP])
    try:
        with cgroups:
            cgroups.adopt(jail.pid)
            membership = Path(f"/proc/{jail.pid}/cgroup").read_text()
            assert membership.count("/zygote") == len(cgroups.directories)
        assert jail.wait(2) == -signal.SIGKILL
    finally:
        jail.kill()
        jail.wait()


def test_a_fork_of_the_server_does_not_remove_its_groups(cgroups: Cgroups) -> None:
    pid = os.fork()
    if pid == 0:
        cgroups.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert all(os.path.exists(path) for path in cgroups.directories)


def test_describe_names_version_and_places(cgroups: Cgroups) -> None:
    text = cgroups.describe()
    assert cgroups.kind in ("v1", "v2", "hybrid")
    assert text.startswith(f"cgroup {cgroups.kind}: ")
    assert all(path in text for path in cgroups.directories)


# --- v2, which every machine has at least without controllers -----------------------------------------------


def unified_mount() -> Mount:
    mounts = [mount for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text()) if mount.version == 2]
    if not mounts or not os.access(mounts[0].point, os.W_OK) or not v2.is_tree_root(mounts[0].point):
        pytest.skip("needs the root of a cgroup2 tree, writable")
    return mounts[0]


def unified_cgroups(zygote_uid: int | None = None) -> Cgroups:
    whole = Tree(mount=unified_mount(), controllers=frozenset(), own=None)
    return open_trees([whole], PREFIX, controllers=frozenset(), zygote_uid=zygote_uid)


def test_v2_slot_is_cloned_into_counted_and_killed() -> None:
    with unified_cgroups() as cgroups:
        slot = cgroups.acquire(CgroupLimits())
        assert (cgroups.kind, slot.attach_fds) == ("v2", ())
        assert slot.populated() is False
        pid = spawn(slot, "import time\nfor i in range(10**6): pass\ntime.sleep(60)")
        assert f"/{slot.name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        assert slot.populated() is True
        assert until(lambda: (slot.cpu_s() or 0) > 0.01)
        slot.kill()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert slot.populated() is False
        assert cgroups.release(slot)
        assert cgroups.acquire(CgroupLimits()) is slot
        assert slot.cpu_s() == 0.0
    assert left_over() == []


ZYGOTE = f"""
{CLONE_INTO}
import sys
uid, fd = int(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
os.setgroups([]); os.setgid(uid); os.setuid(uid)
try:
    pid = clone_into(fd)
except OSError as error:
    print("errno", error.errno)
else:
    if pid == 0:
        print(open("/proc/self/cgroup").read().strip().splitlines()[-1], flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.root
@pytest.mark.parametrize(("allowed", "adopted"), [(True, True), (False, True), (True, False)])
def test_v2_clone_into_a_slot_by_an_unprivileged_zygote(allowed: bool, adopted: bool) -> None:
    """The kernel wants the right to write to the slot and to the common ancestor of slot and caller."""
    uid = 100_000
    with unified_cgroups(zygote_uid=uid if allowed else None) as cgroups:
        slot = cgroups.acquire(CgroupLimits())
        assert slot.clone_fd is not None
        zygote = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ZYGOTE, str(uid), str(slot.clone_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[slot.clone_fd],
        )
        if adopted:
            cgroups.adopt(zygote.pid)
        answer = zygote.communicate("go\n")[0].strip()
    if allowed and adopted:
        assert answer.endswith(f"/{slot.name}")
    else:
        assert answer == f"errno {errno.EACCES}"
    assert left_over() == []


@pytest.fixture
def delegated() -> Iterator[tuple[str, str]]:
    """A group that has a controller to hand on, and that controller: as a service manager prepares it."""
    point = unified_mount().point
    offered = Path(point, "cgroup.controllers").read_text().split()
    controller = next((name for name in ("memory", "hugetlb") if name in offered), None)
    if controller is None:
        pytest.skip("the v2 tree has no controller")
    enabled_before = controller in Path(point, "cgroup.subtree_control").read_text().split()
    group = f"{point}/{PREFIX}-delegated"
    if not enabled_before:
        tree.write(f"{point}/cgroup.subtree_control", f"+{controller}")
    os.mkdir(group)
    try:
        yield group, controller
    finally:
        tree.remove(group)
        if not enabled_before:
            tree.write(f"{point}/cgroup.subtree_control", f"-{controller}")


PREPARING = """
import os, subprocess, sys
from sandbox.kernel.cgroups import tree, v2
group, controller = sys.argv[1:]
tree.write(f"{group}/cgroup.procs", "0")
helper = subprocess.Popen(["sleep", "60"])
try:
    v2.prepare(group, frozenset({controller}))
    print(*sorted(p == os.getpid() or p == helper.pid for p in tree.processes(f"{group}/{v2.SUPERVISOR}")))
    handed_on = tree.read(f"{group}/cgroup.subtree_control").strip()
    print(handed_on, v2.candidates(f"{group}/{v2.SUPERVISOR}", "/x")[0])
except v2.Refused as refused:
    print("refused", refused, open("/proc/self/cgroup").read().strip().splitlines()[-1])
helper.kill()
helper.wait()
"""


def prepare_from_inside(group: str, controller: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PREPARING, group, controller],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_v2_server_moves_itself_and_its_children_out_of_the_way(delegated: tuple[str, str]) -> None:
    group, controller = delegated
    assert prepare_from_inside(group, controller) == ["True True", f"{controller} {group}"]


def test_v2_strangers_in_the_group_are_not_moved(delegated: tuple[str, str]) -> None:
    group, controller = delegated
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        tree.write(f"{group}/cgroup.procs", str(stranger.pid))
        (line,) = prepare_from_inside(group, controller)
        assert f"not ours to move: {stranger.pid} (sleep)" in line
        assert line.endswith(group.removeprefix(unified_mount().point))  # nobody was moved
    finally:
        stranger.kill()
        stranger.wait()


def test_v2_those_who_started_us_move_too_where_the_group_was_handed_over(delegated: tuple[str, str]) -> None:
    group, controller = delegated
    script = f'echo 0 > {group}/cgroup.procs; "$@"; true'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", PREPARING, group, controller]

    def outcome() -> str:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout

    assert "not ours to move" in outcome()
    os.setxattr(group, "trusted.delegate", b"1")
    assert outcome().splitlines()[0] == "False True True"  # the shell, and we two


def test_v2_group_without_the_controller_is_refused(delegated: tuple[str, str]) -> None:
    group, _ = delegated
    with pytest.raises(v2.Refused, match="was not given io"):
        v2.prepare(group, frozenset({"io"}))
