"""`python -m sandbox run`: a real process, its exit code, its streams, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STDLIB_ONLY = '[template]\nlibraries = []\n[limits]\nmemory_bytes = "128 MiB"\nwall_s = 10\n'
STRANGER = 54_321  # a user of no account
DEBIAN_PYTHON = "/usr/bin/python3"


@pytest.fixture
def policy_file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(STDLIB_ONLY)
    return str(path)


def sandbox(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, input=given, capture_output=True, text=True, timeout=60)


def run(policy_file: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return sandbox("run", "--policy", policy_file, *arguments, given=given)


def test_streams_and_exit_code_of_the_program_become_ours(policy_file: str) -> None:
    done = run(policy_file, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_file_and_standard_input_are_programs(policy_file: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('söme', 'file')")
    assert run(policy_file, str(program)).stdout == "söme file\n"
    assert run(policy_file, "-", given="print('piped')").stdout == "piped\n"


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("1/0", 1, "ZeroDivisionError"),
        ("import os; os._exit(9)", 9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV, ""),
        ("bytearray(1 << 30)", 137, "ended by the memory limit"),
        ("while True: pass", 124, "ended by the time limit"),
    ],
)
def test_endings_have_the_exit_codes_of_a_shell(policy_file: str, program: str, code: int, said: str) -> None:
    done = run(policy_file, "--timeout", "1", "-c", program)
    assert done.returncode == code
    assert said in done.stderr
    assert str(REPOSITORY) not in done.stderr


def test_json_is_the_whole_result(policy_file: str) -> None:
    done = run(policy_file, "--json", "-c", "print('x')\n6 * 7")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert (result["outcome"], result["stdout"], result["value"]) == ("ok", "x\n", "42")
    assert set(result["truncated"]) == {"stdout_bytes", "stderr_bytes", "value_bytes"}
    assert result["usage"]["wall_s"] > 0


def test_json_keeps_the_exit_code(policy_file: str) -> None:
    done = run(policy_file, "--json", "--timeout", "0.2", "-c", "while True: pass")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (124, "timeout")


def test_dropped_output_is_told(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(STDLIB_ONLY + 'output_bytes = "1 KiB"\n')
    done = run(str(path), "-c", "print('x' * 5000)")
    assert (done.returncode, len(done.stdout)) == (0, 1024)
    assert "3977 bytes of stdout were dropped" in done.stderr


def test_a_wrong_policy_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[limits]\n\nmemory = 5\n")
    done = run(str(path), "-c", "1")
    assert done.returncode == 2
    assert done.stderr.startswith(f"sandbox: {path}:3: ")
    assert "memory_bytes" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "-c CODE"),
        (("-c", "1", "file.py"), "-c CODE"),
        (("/nonexistent.py",), "/nonexistent.py: cannot be read: No such file or directory"),
        (("--timeout", "-1", "-c", "1"), "timeout_s must be a number of seconds above 0"),
        (("--timeout", "60", "-c", "1"), "--timeout 60 is above limits.wall_s = 10"),
        (("--timeout", "soon", "-c", "1"), "Invalid value for '--timeout'"),
    ],
)
def test_wrong_usage_is_exit_code_2(policy_file: str, arguments: tuple[str, ...], said: str) -> None:
    done = run(policy_file, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_is_not_utf_8_is_refused(policy_file: str, tmp_path: Path) -> None:
    program = tmp_path / "latin.py"
    program.write_bytes(b"print('\xe4')")
    done = run(policy_file, str(program))
    assert done.returncode == 2
    assert "is not UTF-8 at byte 7" in done.stderr


def test_what_the_machine_cannot_do_is_exit_code_1_with_cause_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(STDLIB_ONLY + '[outer]\nnsjail = "/nonexistent/nsjail"\n')
    done = run(str(path), "-c", "1")
    assert done.returncode == 1
    assert done.stderr == "sandbox: outer.nsjail names /nonexistent/nsjail, which is not executable\n"


def test_another_system_is_pointed_to_docker() -> None:
    program = (
        "import sys, sysconfig; from sandbox.__main__ import app; sysconfig.get_config_vars(); "
        "sys.platform = 'darwin'; app(['run', '-c', '1'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Linux" in done.stderr
    assert "Docker" in done.stderr


def test_ctrl_c_ends_the_program_and_leaves_nothing(policy_file: str) -> None:
    command = [sys.executable, "-m", "sandbox", "run", "--policy", policy_file, "-c", "while True: pass"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        deadline = time.monotonic() + 20
        inside: list[psutil.Process] = []
        while len(inside) < 4 and time.monotonic() < deadline:  # janitor, nsjail, zygote, warden
            inside = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, b"")
    _, alive = psutil.wait_procs(inside, timeout=2)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


# As an ordinary user: no cgroups, one id.


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A directory that any user can pass through; pytest's own cannot be."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_stranger(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **environment}, cwd="/", capture_output=True, text=True,
        timeout=60, user=STRANGER, group=STRANGER, extra_groups=[],
    )  # fmt: skip


def stranger_environment(directory: Path) -> tuple[str, dict[str, str]]:
    """An interpreter that a stranger can run with this checkout and what it needs, or a skip that says why not."""
    shutil.copytree(REPOSITORY / "sandbox", directory / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    site = next(entry for entry in sys.path if entry.endswith("site-packages"))
    reasons = []
    for python in (sys.executable, DEBIAN_PYTHON):
        environment = {"PYTHONPATH": f"{directory}:{site}"}
        question = "import sys, typer, rich, pyseccomp, nsjail; print(*sys.version_info[:2])"
        try:
            answer = as_stranger([python, "-c", question], environment)
        except OSError as error:
            reasons.append(f"{python}: {error.strerror}")
            continue
        if answer.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return python, environment
        reasons.append(f"{python}: {answer.stderr.strip().rpartition(chr(10))[2] or answer.stdout.strip()}")
    pytest.skip(f"no interpreter that another user can run: {'; '.join(reasons)}")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_ordinary_user_gets_the_same_with_replaced_limits(readable_by_all: Path) -> None:
    python, environment = stranger_environment(readable_by_all)
    policy_file = readable_by_all / "policy.toml"
    policy_file.write_text(STDLIB_ONLY)
    command = [python, "-m", "sandbox", "run", "--policy", str(policy_file)]

    done = as_stranger([*command, "-c", "import os; print(1 + 1, os.getuid()); raise SystemExit(3)"], environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "2 1000\n", "")

    done = as_stranger([*command, "--timeout", "0.3", "-c", "while True: pass"], environment)
    assert done.returncode == 124

    hoard = (
        "import os, time\nfor _ in range(4):\n if not os.fork(): x = b'x' * (50 << 20); time.sleep(9)\ntime.sleep(9)"
    )
    done = as_stranger([*command, "-c", hoard], environment)
    assert (done.returncode, done.stderr) == (137, "sandbox: ended by the memory limit\n")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_required_cgroups_are_refused_to_an_ordinary_user_by_run_and_doctor(readable_by_all: Path) -> None:
    python, environment = stranger_environment(readable_by_all)
    policy_file = readable_by_all / "policy.toml"
    policy_file.write_text('cgroups = "require"\n' + STDLIB_ONLY)
    arguments = ["--policy", str(policy_file)]

    done = as_stranger([python, "-m", "sandbox", "run", *arguments, "-c", "1"], environment)
    assert done.returncode == 1
    assert done.stderr.startswith("sandbox: the policy requires cgroups: ")

    done = as_stranger([python, "-m", "sandbox", "doctor", "--json", *arguments], environment)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert found["cgroups"]["status"] == found["driver"]["status"] == "missing"
    assert "Delegate=yes" in found["cgroups"]["remedy"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_doctor_tells_an_ordinary_user_what_is_replaced(readable_by_all: Path) -> None:
    python, environment = stranger_environment(readable_by_all)
    policy_file = readable_by_all / "policy.toml"
    policy_file.write_text(STDLIB_ONLY)
    done = as_stranger([python, "-m", "sandbox", "doctor", "--json", "--policy", str(policy_file)], environment)
    report = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert (done.returncode, report["able"]) == (0, True), report
    assert {name for name, finding in found.items() if finding["status"] == "replaced"} == {"users", "cgroups"}
    for word in ("watchdog", "RLIMIT_NPROC", "affinity"):
        assert word in found["cgroups"]["detail"]
    assert found["memory limit"]["detail"].startswith("memory after")
