"""Policies: what they hold, what they refuse, and that each refusal names the place and the remedy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._settings import Section
from sandbox._toml import Document, write
from sandbox.errors import PolicyError
from sandbox.policy import (
    Environment,
    HostFunctions,
    Limits,
    Network,
    Outer,
    Output,
    Policy,
    Pool,
    Root,
    Seccomp,
    Template,
    refused_host_path,
)

SECTIONS = (Limits, Template, Root, Network, Seccomp, Output, Environment, HostFunctions, Pool, Outer)


def fault(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, "policy.toml")
    return str(caught.value)


# ---- what a policy holds


def test_defaults() -> None:
    policy = Policy.default()
    assert policy == Policy() == Policy.loads("")
    assert policy.driver == "zygote"
    assert policy.cgroups == "auto"
    assert policy.limits.memory_bytes == 512 * 2**20
    assert policy.limits.value_bytes == 64 * 2**10
    assert policy.pool.max_sandboxes == "auto"
    assert policy.network.mode == "none"
    assert "sh" in policy.root.commands
    assert policy.environment.variables["LANG"] == "C.UTF-8"


def test_quantities_with_units_and_as_plain_numbers() -> None:
    policy = Policy.loads(
        """
        cgroups = "require"
        [limits]
        memory_bytes = "1.5 GiB"
        workspace_bytes = 1_000_000
        file_size_bytes = "1GB"
        output_bytes = "64 kB"
        wall_s = "2 min"
        grace_s = "200 ms"
        cpu_s = 5
        idle_s = "1.5 h"
        cpu_cores = 2
        [pool]
        max_sandboxes = 100
        ready = 0
        refill_delay_s = 0
        """
    )
    limits = policy.limits
    assert (limits.memory_bytes, limits.workspace_bytes) == (3 * 2**29, 1_000_000)
    assert (limits.file_size_bytes, limits.output_bytes) == (10**9, 64_000)
    assert (limits.wall_s, limits.grace_s, limits.cpu_s, limits.idle_s) == (120.0, 0.2, 5.0, 5400.0)
    assert (limits.cpu_cores, policy.pool.ready, policy.pool.max_sandboxes) == (2.0, 0, 100)
    assert policy.cgroups == "require"


def test_lists_and_variables_replace_the_defaults() -> None:
    policy = Policy.loads(
        """
        root.commands = ["sh"]
        [template]
        libraries = []
        preload = ["json", "os.path"]
        [environment.variables]
        PYTHONHASHSEED = "0"
        """
    )
    assert policy.root.commands == ("sh",)
    assert policy.template.libraries == ()
    assert policy.template.preload == ("json", "os.path")
    assert dict(policy.environment.variables) == {"PYTHONHASHSEED": "0"}


def test_policy_cannot_be_changed() -> None:
    policy = Policy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.driver = "fake"  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.environment.variables["A"] = "b"  # type: ignore[index]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[call-arg]
    mine = {"A": "b"}
    environment = Environment(variables=mine)
    mine["LD_PRELOAD"] = "x"
    assert dict(environment.variables) == {"A": "b"}


def test_replace_takes_sections_and_changes_of_sections() -> None:
    policy = Policy(limits=Limits(processes=10))
    changed = policy.replace(driver="fake", limits={"wall_s": "5 s"}, pool=Pool(ready=1))
    assert (changed.driver, changed.limits.wall_s, changed.limits.processes) == ("fake", 5.0, 10)
    assert changed.pool == Pool(ready=1)
    assert policy.driver == "zygote"
    with pytest.raises(PolicyError, match='limit: unknown key; did you mean "limits"'):
        policy.replace(limit={})
    with pytest.raises(PolicyError, match="limits: must not be 5"):
        policy.replace(limits=5)


def test_digest_names_the_content() -> None:
    assert Policy().digest() == Policy.default().digest()
    assert Policy.loads("[limits]\nwall_s = 30").digest() == Policy().digest()
    assert Policy(limits=Limits(wall_s=31)).digest() != Policy().digest()
    one = Environment(variables={"A": "1", "B": "2"})
    two = Environment(variables={"B": "2", "A": "1"})
    assert Policy(environment=one).digest() == Policy(environment=two).digest()
    assert hash(Policy(environment=one)) == hash(Policy(environment=two))
    code = "from sandbox.policy import Policy; print(Policy().digest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == Policy().digest()


def test_to_dict_is_plain_data() -> None:
    data = Policy().to_dict()
    assert data["limits"]["processes"] == 64
    assert data["root"]["show"] == []
    assert tomllib.loads(Policy().describe()).keys() == data.keys()


def test_description_is_the_same_policy() -> None:
    policy = Policy(
        driver="process",
        limits=Limits(memory_bytes=2**30 + 1, wall_s=0.5),
        environment=Environment(variables={"A": 'quote " backslash \\ newline \n tab \t del \x7f é'}),
        host_functions=HostFunctions(names=("llm_query",)),
        root=Root(show=("/opt/data",)),
    )
    assert Policy.loads(policy.describe()) == policy


@pytest.mark.parametrize("kind", [Policy, *SECTIONS], ids=lambda kind: kind.__name__)
def test_every_setting_is_documented(kind: type[Section]) -> None:
    described = Policy().describe()
    assert kind.__doc__
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if kind is Policy and field.name not in ("driver", "cgroups"):
            assert f"\n[{field.name}" in described
        else:
            assert len(field.metadata["doc"]) > 8
            assert field.metadata["doc"].split()[0] in described


# ---- what a policy refuses, with the place and the remedy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[limits]\nmemory = 512",
            '2: limits.memory: unknown key; unit missing: write memory_bytes = "512 MiB"',
        ),
        ("[limits]\nwall = 3", '2: limits.wall: unknown key; unit missing: write wall_s = "30 s"'),
        (
            "[limits]\nmemory_mb = 5",
            "2: limits.memory_mb: unknown key; unit is another: write memory_bytes =",
        ),
        ("[limits]\nwall_ms = 5", "2: limits.wall_ms: unknown key; unit is another: write wall_s ="),
        ("[limits]\nprocesess = 5", '2: limits.procesess: unknown key; did you mean "processes"?'),
        ("[limit]\nprocesses = 5", '1: limit: unknown key; did you mean "limits"?'),
        ("wall_s = 5", "1: wall_s: unknown key; it belongs into the table [limits]"),
        ("[limits]\nready = 5", "2: limits.ready: unknown key; it belongs into the table [pool]"),
        ("[network]\nzzz = 1", "2: network.zzz: unknown key; known are mode"),
        (
            "[limits]\nmemory_bytes = '512'",
            '2: limits.memory_bytes: "512" has no unit that fits; write it like',
        ),
        ("[limits]\nmemory_bytes = '5 MiBs'", '2: limits.memory_bytes: "5 MiBs" has no unit that fits'),
        ("[limits]\nwall_s = '5 minutes'", '2: limits.wall_s: "5 minutes" has no unit that fits'),
        ("[limits]\nwall_s = -1", "2: limits.wall_s: -1.0 is too small; write at least 0.001 s"),
        ("[limits]\nwall_s = '-1 s'", "2: limits.wall_s: -1.0 is too small"),
        ("[limits]\nwall_s = 0", "2: limits.wall_s: 0.0 is too small"),
        ("[limits]\nwall_s = nan", "2: limits.wall_s: must not be nan; write a finite number"),
        ("[limits]\ncpu_s = inf", "2: limits.cpu_s: must not be inf; write a finite number"),
        ("[limits]\ncpu_cores = 0", "2: limits.cpu_cores: 0.0 is too small"),
        ("[limits]\nmemory_bytes = -5", "2: limits.memory_bytes: -5 is too small; write at least 16 MiB"),
        ("[limits]\nmemory_bytes = 1.5", "2: limits.memory_bytes: must not be 1.5; write a whole number"),
        (
            "[limits]\nprocesses = true",
            "2: limits.processes: must not be true or false; write a whole number",
        ),
        ("[limits]\nwall_s = true", "2: limits.wall_s: must not be true or false; write a finite number"),
        (
            "[limits]\nprocesses = '64'",
            '2: limits.processes: must not be the string "64"; write a whole number',
        ),
        (
            "[limits]\nopen_files = 2000000",
            "2: limits.open_files: 2000000 is too large; write at most 1048576",
        ),
        ("[limits]\nopen_files = 31", "2: limits.open_files: 31 is too small; write at least 32"),
        (f"[limits]\nmemory_bytes = {10**400}", "2: limits.memory_bytes: must not be 1000"),
        (f"[limits]\nwall_s = {10**400}", "2: limits.wall_s: must not be 1000"),
        ("limits = 5", "1: limits: must not be 5; write a table [limits]"),
        (
            "[[limits]]\nwall_s = 5",
            "1: limits: must not be a list with other things than strings; write a table",
        ),
        (
            "driver = 'zygot'",
            '1: driver: must be "zygote" or "nsjail" or "docker" or "process" or "fake", not',
        ),
        ("driver = 5", "1: driver: must not be 5; write a string"),
        ("cgroups = 'replace'", '1: cgroups: must be "require" or "auto", not "replace"'),
        ("[network]\nmode = 'host'", '2: network.mode: must be "none", not "host"'),
        ("[output]\non_limit = 'drop'", '2: output.on_limit: must be "truncate" or "end", not "drop"'),
        ("[seccomp]\nallow = '@basic'", '2: seccomp.allow: must not be the string "@basic"; write a list of'),
        ("[seccomp]\nallow = [1]", "2: seccomp.allow: must not be a list with other things than strings"),
        ("[seccomp]\nallow = ['Read']", '2: seccomp.allow: "Read" cannot be used; write "@group" or the'),
        ("[seccomp]\nallow = ['read', 'read']", '2: seccomp.allow: "read" appears twice; remove one'),
        ("[root]\ncommands = ['/bin/sh']", '2: root.commands: "/bin/sh" cannot be used; write the name of a'),
        ("[root]\ncommands = ['..']", '2: root.commands: ".." cannot be used'),
        ("[root]\nshow = ['data']", '2: root.show: "data" is no such path; write an absolute one'),
        ("[root]\nshow = ['/opt/../etc']", '2: root.show: "/opt/../etc" is no such path'),
        ("[root]\nshow = ['/etc']", '2: root.show: "/etc" is in /etc, which describes or controls the host'),
        ("[template]\npython = 'python3'", '2: template.python: "python3" is no such path'),
        ("[template]\nlibraries = ['a-b']", '2: template.libraries: "a-b" is not an import name'),
        ("[template]\npreload = ['a.import']", '2: template.preload: "a.import" is not an import name'),
        ("[outer]\nnsjail = 'bin/nsjail'", '2: outer.nsjail: "bin/nsjail" is no such path'),
        (
            "[pool]\nmax_sandboxes = 'many'",
            '2: pool.max_sandboxes: must not be the string "many"; write a whole',
        ),
        ("[pool]\nmax_sandboxes = 0", "2: pool.max_sandboxes: 0 is too small; write at least 1"),
        ("[pool]\nready = -1", "2: pool.ready: -1 is too small; write at least 0"),
        (
            "[environment]\nvariables = 5",
            "2: environment.variables: must not be 5; write a table [environment.var",
        ),
        (
            "[environment.variables]\nLD_PRELOAD = 'x'",
            "2: environment.variables.LD_PRELOAD: is refused: it changes",
        ),
        ("[environment.variables]\nA='1'\nPYTHONPATH='x'", "3: environment.variables.PYTHONPATH: is refused"),
        (
            "[environment.variables]\nGLIBC_TUNABLES='x'",
            "2: environment.variables.GLIBC_TUNABLES: is refused",
        ),
        ("[environment.variables]\n1A = 'x'", "2: environment.variables.1A: is not a name for a variable"),
        (
            "[environment.variables]\n'A=B' = 'x'",
            "2: environment.variables.A=B: is not a name for a variable",
        ),
        ("[environment.variables]\nA = 5", "2: environment.variables.A: must be a string, not 5"),
        ('[environment.variables]\nA = "a\\u0000b"', "2: environment.variables.A: contains a NUL"),
        (
            "[host_functions]\nnames = ['class']",
            '2: host_functions.names: "class" is not a name for a function',
        ),
        ("[host_functions]\nnames = ['__a']", '2: host_functions.names: "__a" is not a name for a function'),
        ("[host_functions]\nnames = ['print']", '2: host_functions.names: "print" would hide the builtin'),
        (
            "[host_functions]\ntimeout = 5",
            "2: host_functions.timeout: unknown key; unit missing: write timeout_s",
        ),
    ],
)
def test_wrong_policy_is_refused_with_line_key_and_remedy(text: str, says: str) -> None:
    message = fault(text)
    assert message.startswith(f"policy.toml:{says}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("driver = 'fake'\n\n[limits\n", 3),
        ("a = 1\na = 2\n", 2),
        ("[limits]\nwall_s = \n", 2),
        ("[limits]\nwall_s = 'x\n", 2),
        ("a = [1,\n2\n\n", 2),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(text: str, line: int) -> None:
    message = fault(text)
    assert message.startswith(f"policy.toml:{line}: not TOML: ")
    assert "(at" not in message or "end of document" in message


def test_lines_are_found_in_odd_layouts() -> None:
    text = '''# wall_s = 1
driver = "zygote" # [limits]
environment.variables.NOTE = """
[limits]
wall_s = 5
\\""" still inside
"""
root = { show = [], commands = ["sh"] }
[template]
libraries = [ # "]"
  "a]b", """
[limits]""", [
] ]
["limits"]
"wall_s" = 5
  cpu_s=6
[pool]
'''
    document = Document(text, "x")
    assert document.line(("environment", "variables", "NOTE")) == 3
    assert document.line(("root", "show")) == 8
    assert document.line(("template", "libraries")) == 10
    assert document.line(("limits",)) == 14
    assert document.line(("limits", "wall_s")) == 15
    assert document.line(("limits", "cpu_s")) == 16
    assert document.line(("pool", "ready")) == 17
    assert document.line(("seccomp",)) == 1


def test_same_key_in_two_tables_is_found_in_its_own() -> None:
    message = fault("[host_functions]\ntimeout_s = 5\n\n[limits]\nwall_s = 5\n[pool]\nwall_s = 5")
    assert message.startswith("policy.toml:7: pool.wall_s: unknown key; it belongs into the table [limits]")


def test_file_that_cannot_be_read_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"missing\.toml: cannot be read: No such file"):
        Policy.load(tmp_path / "missing.toml")
    with pytest.raises(PolicyError, match="cannot be read: Is a directory"):
        Policy.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(PolicyError, match="is not UTF-8; save it as UTF-8"):
        Policy.load(str(tmp_path / "latin.toml"))


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[limits]\n\nwall_s = '3 s'\n")
    assert Policy.load(path).limits.wall_s == 3.0
    path.write_text("[limits]\n\nwall_s = '3'\n")
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert str(caught.value).startswith(f"{path}:3: limits.wall_s: ")


def test_constructors_refuse_too() -> None:
    with pytest.raises(PolicyError, match=r'limits\.memory_bytes: must not be the string "512 MiB"'):
        Limits(memory_bytes="512 MiB")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"seccomp\.allow: must not be the string"):
        Seccomp(allow="@basic")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"policy|limits: must not be Pool"):
        Policy(limits=Pool())  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"limits\.wall_s: must not be None"):
        Limits(wall_s=None)  # type: ignore[arg-type]


HOST = "/ /boot /etc /etc/ssl /root /root/data /home /home/alice /proc /proc/1/root /sys /dev/shm /tmp /opt /var"
DOCKER = "/run/docker.sock /var/run/docker.sock /var/lib/docker/volumes"
UNCLEAR = "relative ./a /a/ //a /a//b /a/./b /a/../b"


@pytest.mark.parametrize("path", f"{HOST} {DOCKER} {UNCLEAR}".split())
def test_host_path_that_says_too_much_is_refused(path: str) -> None:
    assert refused_host_path(path)


def test_host_paths_that_may_be_shown() -> None:
    for path in ("/opt/data", "/home/alice/datasets", "/srv/models/a b", "/usr/share/zoneinfo", "/etcetera"):
        assert refused_host_path(path) is None
    for path in ("", "/a\nb", "/a\0b", "/a\x1bb"):
        assert refused_host_path(path)


@given(st.text())
def test_any_string_survives_being_written(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no TOML
    assert tomllib.loads(f"a = {write(text)}") == {"a": text}


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(
    st.sampled_from(SECTIONS).flatmap(lambda k: st.tuples(st.just(k), st.sampled_from(dataclasses.fields(k)))),
    JSON,
)
def test_any_value_is_taken_or_refused_by_name(setting: tuple[type[Any], Any], value: Any) -> None:
    kind, field = setting
    refusal = f"{kind.table[0]}.{field.name}"
    try:
        kind(**{field.name: value})
    except PolicyError as error:
        refusal = str(error)
    assert refusal.startswith(f"{kind.table[0]}.{field.name}")
