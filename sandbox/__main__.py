"""`python -m sandbox run`, `install` and `doctor`: thin over the library.

Exit codes of `run`: the program's own; 124 after a timeout, 137 beyond the memory limit, 128 + n after signal n, 130
after Ctrl-C. Of all commands: 2 for a wrong argument or policy, 1 if this machine cannot do it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sandbox.errors import PolicyError, SandboxError, UnsupportedError
from sandbox.policy import Policy
from sandbox.result import Outcome, Result

app = typer.Typer(
    help="Real CPython for untrusted code, in a hardened sandbox.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_EXIT_CODES = {Outcome.TIMEOUT: 124, Outcome.MEMORY: 137}
_REASONS = {
    Outcome.TIMEOUT: "ended by the time limit",
    Outcome.MEMORY: "ended by the memory limit",
    Outcome.OUTPUT_LIMIT: "ended by the output limit",
}

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="policy.toml; the default policy if left out")
]
AsJson = Annotated[bool, typer.Option("--json", help="write one JSON object instead")]


@app.callback()
def _main() -> None:
    logging.basicConfig(level=logging.ERROR, format="sandbox: %(message)s")  # standard error is the program's


@app.command()
def run(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="a Python program; - is standard input")] = None,
    code: Annotated[str | None, typer.Option("-c", metavar="CODE", help="the program itself")] = None,
    policy: PolicyFile = None,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="wall time")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one program in a fresh sandbox; its output and its exit code become ours."""
    with _faults():
        _require_linux()
        source = _source(file, code)
        result = _run(source, _policy_for_one(policy, timeout), timeout)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result)))
    else:
        _show(result)
    raise typer.Exit(_EXIT_CODES.get(result.outcome, result.exit_code))


@app.command()
def install(
    requirements: Annotated[
        Path | None,
        typer.Option("--requirements", metavar="FILE", help="what to install; numpy and others if left out"),
    ] = None,
    python: Annotated[str, typer.Option("--python", metavar="PROGRAM", help="the guests' interpreter")] = "auto",
    into: Annotated[Path | None, typer.Option("--into", metavar="DIR", help="another place than the default")] = None,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="install anew, even if nothing changed")] = False,
) -> None:
    """Install the libraries that guest code can import."""
    with _faults():
        _require_linux()
        from sandbox.install import DEFAULT_REQUIREMENTS
        from sandbox.install import install as make

        done = make(
            requirements=requirements or DEFAULT_REQUIREMENTS, python=python, into=into, again=upgrade, say=typer.echo
        )
    if not done.changed:
        typer.echo(f"already installed, nothing to do: {done.path}")
        return
    typer.echo(f"installed: {done.path}")
    if done.unchecked is not None:
        typer.echo(f"not tried inside a sandbox: {done.unchecked}", err=True)
    if into is not None:
        typer.echo(f'to use it, write into the policy, under [template]: library_path = "{done.path}"')


@app.command()
def doctor(policy: PolicyFile = None, as_json: AsJson = False) -> None:
    """Say whether this machine can keep the promises of a policy, by trying them."""
    with _faults():
        from sandbox.doctor import diagnose, show

        report = diagnose(_load(policy))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        show(report)
    raise typer.Exit(0 if report.able else 1)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Our faults as one message and an exit code; everything that was started has ended by then."""
    try:
        yield
    except PolicyError as error:
        _complain(error)
        raise typer.Exit(2) from None
    except (SandboxError, ImportError) as error:
        _complain(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _require_linux() -> None:
    if sys.platform != "linux":
        raise UnsupportedError("the sandbox needs Linux; elsewhere, run the server in Docker (see README.md)")


def _complain(error: Exception) -> None:
    typer.echo(f"sandbox: {error}", err=True)


def _load(path: Path | None) -> Policy:
    return Policy.load(path) if path is not None else Policy.default()


def _source(file: str | None, code: str | None) -> str:
    if (file is None) == (code is None):
        raise typer.BadParameter("name a FILE, or - for standard input, or give -c CODE")
    if code is not None:
        return code
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(str(file)).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise PolicyError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _policy_for_one(path: Path | None, timeout_s: float | None) -> Policy:
    """The policy, with a pool of one. Without a file, a longer timeout raises the limits; a file's are kept."""
    policy = _load(path).replace(pool={"ready": 0, "max_sandboxes": 1})
    limits = policy.limits
    if timeout_s is None or timeout_s <= limits.wall_s:
        return policy
    if path is not None:
        raise PolicyError(f"--timeout {timeout_s:g} is above limits.wall_s = {limits.wall_s:g}; raise it in {path}")
    return policy.replace(limits={"wall_s": timeout_s, "cpu_s": max(limits.cpu_s, timeout_s * limits.cpu_cores)})


def _run(source: str, policy: Policy, timeout_s: float | None) -> Result:
    from sandbox import Sandbox

    with Sandbox.open(policy) as box:
        return box.run_code(source, timeout_s=timeout_s)


def _show(result: Result) -> None:
    for stream, text in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
        stream.buffer.write(text.encode("utf-8", "replace"))
        stream.flush()
    facts: dict[str, Any] = dataclasses.asdict(result.truncated)
    for name, count in facts.items():
        if count and name != "value_bytes":
            typer.echo(f"sandbox: {count} bytes of {name.removesuffix('_bytes')} were dropped", err=True)
    if result.outcome in _REASONS:
        typer.echo(f"sandbox: {_REASONS[result.outcome]}", err=True)


if __name__ == "__main__":
    app(prog_name="python -m sandbox")
