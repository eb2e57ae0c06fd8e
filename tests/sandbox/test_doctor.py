"""Doctor tells the truth: where a machine is as it should be, and where something was taken away from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox import Policy
from sandbox.doctor import Finding, Report, diagnose
from sandbox.doctor.host import namespace_remedy
from sandbox.doctor.show import verdict

REPOSITORY = Path(__file__).resolve().parents[2]
STDLIB_ONLY = Policy.default().replace(template={"libraries": ()})
FIELDS = {"name", "status", "detail", "remedy", "required"}
PROMISES = {
    "inside: user", "inside: capabilities", "inside: no new privileges", "inside: system-call filter",
    "inside: network", "inside: processes", "inside: root", "inside: namespaces", "inside: environment",
    "memory limit", "process limit", "time limit", "time limit, not yielding",
}  # fmt: skip


def named(report: Report) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def doctor(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox", "doctor", *arguments]
    if before:
        command = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{before} && exec "$0" "$@"', *command]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text("[template]\nlibraries = []\n")
    return path


def test_every_promise_is_tried_and_kept_here() -> None:
    report = diagnose(STDLIB_ONLY)
    found = named(report)
    assert report.able, report
    assert found.keys() >= PROMISES
    assert [found[name].detail for name in PROMISES if found[name].status != "ok"] == []


def test_json_has_a_schema_and_the_exit_code_agrees_with_it(policy_file: Path) -> None:
    done = doctor("--json", "--policy", str(policy_file))
    report = as_json(done)
    assert (report["driver"], report["able"], done.returncode) == ("zygote", True, 0)
    for finding in report["findings"]:
        assert finding.keys() == FIELDS
        assert finding["status"] in ("ok", "replaced", "missing")
        assert isinstance(finding["detail"], str)
        assert (finding["remedy"] is None) == (finding["status"] == "ok")
    assert len({finding["name"] for finding in report["findings"]}) == len(report["findings"])


def test_the_table_is_for_people(policy_file: Path) -> None:
    done = doctor("--policy", str(policy_file))
    assert done.returncode == 0
    assert "keeps this policy here" in done.stdout.splitlines()[-1]
    assert "print(1+1) gave 2" in done.stdout
    assert done.stderr == ""


def test_an_nsjail_that_does_not_exist_is_named(policy_file: Path) -> None:
    policy_file.write_text('[template]\nlibraries = []\n[outer]\nnsjail = "/nonexistent/nsjail"\n')
    done = doctor("--json", "--policy", str(policy_file))
    found = {finding["name"]: finding for finding in as_json(done)["findings"]}
    assert done.returncode == 1
    assert found["nsjail"]["status"] == found["driver"]["status"] == "missing"
    assert "/nonexistent/nsjail" in found["nsjail"]["detail"]


def test_an_nsjail_that_does_not_run_is_not_believed() -> None:
    report = diagnose(STDLIB_ONLY.replace(outer={"nsjail": "/bin/false"}))
    assert not report.able
    assert "does not run" in named(report)["nsjail"].detail


def test_missing_libraries_are_named_with_the_command_that_brings_them(tmp_path: Path) -> None:
    report = diagnose(Policy.default().replace(template={"library_path": str(tmp_path / "none")}))
    found = named(report)["libraries"]
    assert (report.able, found.status, found.remedy) == (False, "missing", "python -m sandbox install")
    assert str(tmp_path / "none") in found.detail


def test_a_wrong_policy_is_exit_code_2(policy_file: Path) -> None:
    policy_file.write_text("[limits]\nwall_seconds = 3\n")
    done = doctor("--json", "--policy", str(policy_file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sandbox: {policy_file}:2: ")


def user_namespaces_work() -> bool:
    try:
        return subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not user_namespaces_work(), reason="needs unshare and user namespaces")
def test_a_machine_without_user_namespaces_is_told_which_setting_to_change(policy_file: Path) -> None:
    before = "echo 0 > /proc/sys/user/max_user_namespaces"  # of the new namespace alone
    done = doctor("--json", "--policy", str(policy_file), before=before)
    found = {finding["name"]: finding for finding in as_json(done)["findings"]}
    assert done.returncode == 1
    assert found["namespaces"]["status"] == found["driver"]["status"] == "missing"
    assert "sysctl -w user.max_user_namespaces=" in found["namespaces"]["remedy"]


@pytest.mark.skipif(not user_namespaces_work(), reason="needs unshare and user namespaces")
def test_the_root_of_a_user_namespace_has_one_id_to_give(policy_file: Path) -> None:
    done = doctor("--json", "--policy", str(policy_file), before="true")
    found = {finding["name"]: finding for finding in as_json(done)["findings"]}
    assert done.returncode == 0, done.stdout
    assert found["users"]["status"] == "replaced"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces="),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_each_setting_that_forbids_user_namespaces_has_its_own_remedy(path: str, value: str, said: str) -> None:
    assert said in namespace_remedy({path: value}.get, root=False)
    other = "1" if value == "0" else "0"
    assert "container" in namespace_remedy({path: other}.get, root=False)


def test_settings_for_ordinary_users_are_not_blamed_when_root_fails() -> None:
    settings = {
        "/proc/sys/kernel/unprivileged_userns_clone": "0",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
    }
    assert "--security-opt" in namespace_remedy(settings.get, root=True)


def test_another_system_is_pointed_to_docker() -> None:
    program = (
        "import sys, sysconfig; from sandbox.__main__ import app; sysconfig.get_config_vars(); "
        "sys.platform = 'darwin'; app(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    (finding,) = as_json(done)["findings"]
    assert done.returncode == 1
    assert (finding["name"], finding["status"]) == ("platform", "missing")
    assert "Docker" in finding["remedy"]


def test_the_verdict_follows_from_the_findings() -> None:
    fine, weaker = Finding.ok("a", ""), Finding.replaced("b", "", "do x")
    unneeded, lacking = Finding.missing("c", "", "", required=False), Finding.missing("d", "", "do y")
    assert Report(driver="zygote", findings=(fine, unneeded)).able
    assert verdict(Report(driver="zygote", findings=(fine, unneeded))).endswith("keeps this policy here.")
    assert verdict(Report(driver="zygote", findings=(fine, weaker))).endswith("with replacements for b.")
    assert verdict(Report(driver="zygote", findings=(weaker, lacking))).endswith("cannot keep this policy here: d.")


def test_the_process_that_asks_is_not_changed() -> None:
    """What cannot be undone is tried in processes of its own."""

    def walls() -> tuple[object, ...]:
        lines = Path("/proc/self/status").read_text().splitlines()
        links = [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "net", "pid")]
        return links, [line for line in lines if line.startswith(("Seccomp", "NoNewPrivs", "Cap"))]

    before = walls()
    diagnose(STDLIB_ONLY.replace(outer={"nsjail": "/nonexistent"}))
    assert walls() == before
