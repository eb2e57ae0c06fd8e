"""How a step ends: the outcome word, the exit code, the signal; and after every end the next step works."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import signal
import sys

import pytest

from sandbox import PolicyError, Sandbox

from ..boxes import said, works

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENDS = {
    "nothing": ("", "ok", 0),
    "blank": ("  \n\t\n", "ok", 0),
    "comments": ("# one\n# two", "ok", 0),
    "expression": ("1 + 1", "ok", 0),
    "exception": ("1 / 0", "error", 1),
    "exit_none": ("raise SystemExit", "exited", 0),
    "exit_number": ("import sys; sys.exit(7)", "exited", 7),
    "exit_negative": ("raise SystemExit(-1)", "exited", 255),
    "exit_true": ("raise SystemExit(True)", "exited", 1),
    "exit_huge": ("raise SystemExit(2**70)", "exited", 255),
    "exit_text": ("raise SystemExit('bye')", "exited", 1),
    "exit_builtin": ("exit(4)", "exited", 4),
    "exit_group": ("raise BaseExceptionGroup('g', [SystemExit(2)])", "error", 1),
    "keyboard_interrupt": ("raise KeyboardInterrupt", "error", 1),
    "generator_exit": ("raise GeneratorExit", "error", 1),
    "memory_error": ("raise MemoryError", "memory", 1),
    "syntax_error": ("def f(:\n  pass", "error", 1),
    "indentation_error": ("if 1:\npass", "error", 1),
    "tab_error": ("if 1:\n\tx\n        y", "error", 1),
    "nul_in_code": ("x = 1\0", "error", 1),
    "surrogate_in_code": ("x = '\ud800'", "error", 1),
    "input": ("input('name? ')", "error", 1),
    "repr_raises": ("class C:\n  def __repr__(self): raise ValueError('no')\nC()", "error", 1),
    "repr_no_string": ("class C:\n  def __repr__(self): return 3\nC()", "error", 1),
    "str_raises": ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "error", 1),
    "recursion": ("def f(): f()\nf()", "error", 1),
    "deep_source": ("(" * 500 + ")" * 500, "error", 1),
    "deep_minus": ("-" * 200_000 + "1", "memory|error", 1),
    "await_outside": ("await x", "error", 1),
    "return_outside": ("return 3", "error", 1),
    "evil_exit_code": (
        "class I(int):\n  def __and__(self, o): return 'x'\n  __rand__ = __and__\nraise SystemExit(I(5))", "exited", 5),
    "evil_exit_property": (
        "class E(SystemExit):\n  @property\n  def code(self): raise RuntimeError\nraise E", "exited", 1),
    "evil_exit_text": (
        "class S:\n  def __str__(self): raise RuntimeError\nraise SystemExit(S())", "exited", 1),
    "evil_class": (
        "class E(Exception):\n  __class__ = property(lambda self: 1/0)\nraise E", "error", 1),
    "evil_meta": (
        "class M(type):\n  def __getattribute__(c, n): raise RuntimeError(n)\n"
        "class E(Exception, metaclass=M): pass\nraise E", "error", 1),
    "evil_str_subclass": (
        "class S(str):\n  def __len__(self): return -5\n  def __getitem__(self, i): raise OSError\n"
        "class C:\n  def __repr__(self): return S('v')\nC()", "ok|error", None),
    "no_traceback_module": ("import traceback\ntraceback.TracebackException = None\n1/0", "error", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
async def test_step_ends(box: Sandbox, name: str) -> None:
    source, outcome, exit_code = ENDS[name]
    result = await box.run_code(source)
    assert str(result.outcome) in outcome.split("|"), result
    if exit_code is not None:
        assert result.exit_code == exit_code
    assert result.signal is None
    assert not result.state_lost
    await works(box)


DEATHS = {
    "os_exit": ("import os; os._exit(3)", "exited", 3, None),
    "os_exit_zero": ("import os; os._exit(0)", "exited", 0, None),
    "segfault": ("import ctypes; ctypes.string_at(0)", "killed", 139, signal.SIGSEGV),
    "abort": ("import os; os.abort()", "killed", 134, signal.SIGABRT),
    "sigkill": ("import os; os.kill(os.getpid(), 9)", "killed", 137, signal.SIGKILL),
    "sigterm": ("import os; os.kill(os.getpid(), 15)", "killed", 143, signal.SIGTERM),
    "sigkill_group": ("import os; os.killpg(0, 9)", "killed", 137, signal.SIGKILL),
    "kill_all": ("import os\ntry: os.kill(-1, 9)\nexcept ProcessLookupError: os.kill(os.getpid(), 9)", "killed", 137, signal.SIGKILL),
    "deep_c_recursion": (
        "import sys; sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        "killed", 139, signal.SIGSEGV),
    "bad_pointer_call": ("import ctypes; ctypes.CFUNCTYPE(None)(8)()", "killed", 139, signal.SIGSEGV),
    "exec": ("import os; os.execv('/usr/bin/true', ['true'])", "exited", 0, None),
    "real_time_signal": ("import os, signal; os.kill(os.getpid(), signal.SIGRTMAX)", "killed", 192, signal.SIGRTMAX),
}  # fmt: skip


@pytest.mark.parametrize("name", DEATHS)
async def test_interpreter_dies(box: Sandbox, name: str) -> None:
    source, outcome, exit_code, number = DEATHS[name]
    await box.write_file("kept.txt", "kept")
    result = await box.run_code(f"print('before', flush=True)\n{source}")
    assert said(result) == (outcome, exit_code, number)
    assert result.state_lost
    assert result.stdout == "before\n"
    await works(box)
    assert await box.read_file("kept.txt") == b"kept"


async def test_prints_before_an_exception_are_kept_in_order(box: Sandbox) -> None:
    result = await box.run_code(
        "import sys\nprint('a')\nprint('b', end='')\nsys.stderr.write('c')\nraise KeyError('k')"
    )
    assert result.stdout == "a\nb"
    assert result.stderr == (
        "cTraceback (most recent call last):\n"
        '  File "<step 1>", line 5, in <module>\n'
        "    raise KeyError('k')\n"
        "KeyError: 'k'\n"
    )


async def test_traceback_shows_the_lines_of_an_earlier_step(box: Sandbox) -> None:
    await box.run_code("def f(x):\n    return 1 / x")
    result = await box.run_code("f(0)")
    assert 'File "<step 1>", line 2, in f\n    return 1 / x' in result.stderr
    assert 'File "<step 2>", line 1, in <module>\n    f(0)' in result.stderr


TRACEBACKS = {
    "plain": "1/0",
    "chained": "try:\n  1/0\nexcept Exception as e:\n  raise RuntimeError from e",
    "context": "try:\n  1/0\nexcept Exception:\n  None.x",
    "group": "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [KeyError(2)])])",
    "syntax": "x = = 1",
    "interrupt_self": "import signal; signal.raise_signal(signal.SIGINT)",
    "interrupt_caught": "import signal\ntry:\n  signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n  1/0",
    "library": "import json; json.loads('{')",
    "exec": "exec('1/0')",
    "thread": "import threading; t = threading.Thread(target=lambda: 1/0); t.start(); t.join()",
    "print_exc": "import traceback\ntry:\n  1/0\nexcept Exception:\n  traceback.print_exc()",
    "nested_context": "try:\n  import signal; signal.raise_signal(signal.SIGINT)\nexcept BaseException as e:\n  raise e",
}  # fmt: skip


@pytest.mark.parametrize("name", TRACEBACKS)
async def test_traceback_has_neither_a_host_path_nor_a_frame_of_ours(box: Sandbox, name: str) -> None:
    result = await box.run_code(TRACEBACKS[name])
    assert "<step 1>" in result.stderr or "<string>" in result.stderr
    for theirs in ("interpreter.py", "/proc/self/fd", "sandbox/", sys.prefix, sys.base_prefix, "frames.py"):
        assert theirs not in result.stderr


async def test_syntax_error_points_at_the_place(box: Sandbox) -> None:
    result = await box.run_code("x = 1\nprint(x y)")
    assert result.stderr == (
        '  File "<step 1>", line 2\n'
        "    print(x y)\n"
        "          ^^^\n"
        "SyntaxError: invalid syntax. Perhaps you forgot a comma?\n"
    )


async def test_exit_text_goes_to_standard_error(box: Sandbox) -> None:
    result = await box.run_code("raise SystemExit('bye')")
    assert (result.stderr, result.exit_code) == ("bye\n", 1)


async def test_value_of_the_last_expression(box: Sandbox) -> None:
    for source, value in (
        ("[1, 'é']", "[1, 'é']"), ("x = 3", None), ("None", None), ("x = 3\nx", "3"), ("x;", "3"),
        ("'\\ud800'", "'\\ud800'"), ("for i in []: pass", None), ("'a\\0b'", "'a\\x00b'"), ("_ = 5\n...", "Ellipsis"),
    ):  # fmt: skip
        assert (await box.run_code(source)).value == value


async def test_value_with_a_lone_surrogate_is_text_that_can_be_encoded(box: Sandbox) -> None:
    source = "class C:\n  def __repr__(self): return chr(0xd800) * 70000\nC()"
    result = await box.run_code(source)
    assert result.outcome == "ok"
    assert result.value is not None
    result.value.encode()
    await works(box)


async def test_state_lives_from_step_to_step(box: Sandbox) -> None:
    await box.run_code("import math\nx = 2\ndef f(): return x\nclass C: y = 3")
    await box.run_code("import os; os.makedirs('d'); os.chdir('d'); os.environ['K'] = 'v'; x = 5")
    result = await box.run_code("f(), C.y, math.floor(1.5), os.getcwd(), os.environ['K']")
    assert result.value == "(5, 3, 1, '/workspace/d', 'v')"


async def test_state_survives_an_exception(box: Sandbox) -> None:
    await box.run_code("x = 1\n1/0")
    assert (await box.run_code("x")).value == "1"


async def test_looks_like_python(box: Sandbox) -> None:
    source = "__name__, __import__('sys').argv, __import__('sys').modules['__main__'].__dict__ is globals()"
    assert (await box.run_code(source)).value == "('__main__', [''], True)"


async def test_no_name_of_ours_is_in_the_way(box: Sandbox) -> None:
    result = await box.run_code("sorted(n for n in globals() if not n.startswith('__'))")
    assert result.value == "[]"
    result = await box.run_code("import sys\n[n for n in sys.modules if 'sandbox' in n or 'zygote' in n]")
    assert result.value == "[]"
    assert (await box.run_code("sys.path[0], any('proc' in p for p in sys.path)")).value == "('', False)"


async def test_five_megabytes_of_source(box: Sandbox) -> None:
    result = await box.run_code(("x = 1  # " + "y" * 90 + "\n") * 50_000 + "print(x)")
    assert said(result) == ("ok", 0, None)
    assert result.stdout == "1\n"
    result = await box.run_code("x = '" + "y" * 5_000_000 + "'\nprint(len(x))")
    assert result.stdout == "5000000\n"
    await works(box)


async def test_source_that_compiles_to_more_than_the_memory_limit(box: Sandbox) -> None:
    result = await box.run_code("x = 1\n" * 850_000)  # 1.2 GB in any CPython 3.11
    assert said(result) == ("memory", 1, None)
    await works(box)


@pytest.mark.parametrize("source", [3, b"x", None, ["x"]])
async def test_source_of_a_wrong_type_is_refused(box: Sandbox, source: object) -> None:
    with pytest.raises(PolicyError, match="source must be a string, not"):
        await box.run_code(source)  # type: ignore[arg-type]
    await works(box)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "5", True, [1]])
async def test_timeout_that_is_none_is_refused(box: Sandbox, timeout_s: object) -> None:
    with pytest.raises(PolicyError, match="timeout_s must be a number of seconds above 0"):
        await box.run_code("1", timeout_s=timeout_s)  # type: ignore[arg-type]
    await works(box)


async def test_source_over_the_limit_is_refused(box: Sandbox) -> None:
    with pytest.raises(PolicyError, match=r"limits\.source_bytes allows"):
        await box.run_code("#" * (16 * 2**20 + 1))
    with pytest.raises(PolicyError, match=r"limits\.source_bytes allows"):
        await box.run_code("é" * (8 * 2**20 + 1))
    await works(box)


MISCHIEF = {
    "builtins_cleared": "__builtins__.__dict__.clear()",
    "close_0_to_2": "import os\nfor i in range(3): os.close(i)",
    "close_stdout": "import sys; sys.stdout.close()",
    "close_all_streams": "import sys; sys.stdin.close(); sys.stdout.close(); sys.stderr.close()",
    "closerange": "import os; os.closerange(0, 10_000)",
    "close_range_libc": "import ctypes; ctypes.CDLL(None).close_range(0, 4294967295, 0)",
    "cloexec_range_libc": "import ctypes; ctypes.CDLL(None).close_range(0, 4294967295, 4)",
    "dup2_everywhere": (
        "import os\nf = os.open('/dev/null', os.O_RDWR)\n"
        "for i in range(256):\n  try: os.dup2(f, i)\n  except OSError: pass"),
    "streams_none": "import sys; sys.stdin = sys.stdout = sys.stderr = None",
    "streams_evil": "import sys\nclass S:\n  def __getattr__(s, n): raise SystemExit(9)\nsys.stdout = sys.stderr = S()",
    "print_gone": "import builtins; builtins.print = None; del builtins.print; import io; builtins.print = lambda *a, **k: None",
    "detach": "import sys; sys.stdout.detach(); sys.stderr.detach()",
    "detach_dunder": "import sys; sys.__stdout__.detach(); sys.__stderr__.detach(); sys.__stdin__.detach()",
    "reconfigure": "import sys; sys.stdout.reconfigure(encoding='utf-16', newline='\\r\\n', errors='ignore')",
    "unflushed": "import sys, os; sys.stdout.write('x' * 10); os.close(1)",
    "no_os_write": "import os; os.write = os.read = os.dup2 = None",
    "no_json": "import json, json.encoder; json.dumps = None; json.JSONEncoder.encode = None; json.encoder.c_make_encoder = None",
    "memoryview_gone": "import builtins; builtins.memoryview = None; builtins.len = None; builtins.isinstance = None; builtins.type = None",
    "audit_hook": "import sys\ndef h(e, a):\n  raise RuntimeError(e)\nsys.addaudithook(h)",
    "settrace": "import sys\ndef t(*a): raise RuntimeError\nsys.settrace(t)",
    "setprofile": "import sys\ndef t(*a): raise RuntimeError\nsys.setprofile(t)",
    "excepthook": "import sys; sys.excepthook = None; sys.displayhook = None",
    "meta_path": "import sys; sys.meta_path.clear(); sys.path.clear(); sys.path_hooks.clear()",
    "modules_clear": "import sys; sys.modules.clear()",
    "linecache": "import linecache; linecache.cache = None",
    "main_replaced": "import sys; sys.modules['__main__'] = None",
    "sigmask": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    "gc_objects": "import gc\nfor o in gc.get_objects():\n  if type(o).__name__ == 'Interpreter': o.__dict__.clear()",
    "signals_ignored": "import signal\nfor i in range(1, 65):\n  try: signal.signal(i, signal.SIG_IGN)\n  except (OSError, ValueError): pass",
    "nofile_zero": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
    "nproc_zero": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
    "chdir_gone": "import os; os.mkdir('g'); os.chdir('g'); os.rmdir('/workspace/g')",
    "umask": "import os; os.umask(0o777)",
    "chroot_modes": "import os; os.chmod('/workspace', 0)",
    "recursion_limit": "import sys; sys.setrecursionlimit(60)",
    "switch_interval": "import sys; sys.setswitchinterval(1e-6)",
    "alarm": "import signal; signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nsignal.setitimer(signal.ITIMER_REAL, 0)",
    "frame_walk": "import sys\nf = sys._getframe()\nwhile f:\n  f.f_locals.clear()\n  f = f.f_back",
}  # fmt: skip


@pytest.mark.parametrize("name", MISCHIEF)
async def test_what_a_step_does_to_itself_does_not_stop_the_next(box: Sandbox, name: str) -> None:
    """The interpreter is the guest's own: it may break it. What it owes is an answer, and a way to go on."""
    first = await box.run_code(MISCHIEF[name], timeout_s=5)
    assert str(first.outcome) in ("ok", "error", "exited", "killed"), first
    second = await box.run_code("x = 1", timeout_s=5)
    assert str(second.outcome) in ("ok", "error", "exited", "killed"), second
    if name in HARMLESS:
        assert (first.state_lost, second.state_lost) == (False, False)
        await works(box)
    else:
        await box.reset()
        await works(box)


HARMLESS = {
    "close_0_to_2", "close_stdout", "close_all_streams", "closerange", "close_range_libc",
    "dup2_everywhere", "streams_none", "streams_evil", "detach", "detach_dunder", "unflushed", "settrace", "setprofile",
    "no_os_write", "no_json", "excepthook", "main_replaced", "sigmask", "signals_ignored", "chdir_gone", "umask",
    "linecache", "nproc_zero",
}  # fmt: skip
