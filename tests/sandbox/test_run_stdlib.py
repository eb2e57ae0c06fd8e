"""The standard library works inside, as far as it makes sense without a network."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import pytest

from sandbox import Sandbox

from ..boxes import said, works

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROGRAMS = {
    "generators": "def g():\n  x = yield 1\n  yield x\ni = g(); next(i); print(i.send('v'))",
    "classes": "class A:\n  def f(self): return 'a'\nclass B(A):\n  def f(self): return super().f() + 'v'\nprint(B().f()[1])",
    "closures": "def f():\n  x = 'v'\n  return lambda: x\nprint(f()())",
    "dataclasses": "from dataclasses import dataclass\n@dataclass(slots=True)\nclass P:\n  x: str\nprint(P('v').x)",
    "enum": "import enum\nclass E(enum.Enum): A = 'v'\nprint(E.A.value)",
    "match": "match {'k': 'v'}:\n  case {'k': x}: print(x)",
    "asyncio": "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return 'v'\nprint(asyncio.run(f()))",
    "asyncio_subprocess": (
        "import asyncio\nasync def f():\n  p = await asyncio.create_subprocess_exec('echo', 'v', stdout=-1)\n"
        "  print((await p.communicate())[0].decode().strip())\nasyncio.run(f())"),
    "asyncio_tasks": (
        "import asyncio\nasync def f(i): await asyncio.sleep(0.001); return i\n"
        "async def m():\n  r = await asyncio.gather(*map(f, range(20)))\n  print('v' if r == list(range(20)) else r)\nasyncio.run(m())"),
    "asyncio_thread": "import asyncio\nasync def f(): return await asyncio.to_thread(lambda: 'v')\nprint(asyncio.run(f()))",
    "asyncio_unix_server": (
        "import asyncio\nasync def h(r, w): w.write(b'v'); w.close()\n"
        "async def m():\n  s = await asyncio.start_unix_server(h, 's.sock')\n  r, w = await asyncio.open_unix_connection('s.sock')\n"
        "  print((await r.read()).decode()); w.close(); s.close()\nasyncio.run(m())"),
    "asyncio_runs_in_a_child": (
        "import asyncio\nasync def f():\n  p = await asyncio.create_subprocess_shell('cat', stdin=-1, stdout=-1)\n"
        "  print((await p.communicate(b'v'))[0].decode())\nasyncio.run(f())"),
    "threading": "import threading\nr = []\nt = [threading.Thread(target=r.append, args=['v']) for _ in range(9)]\n[x.start() for x in t]; [x.join() for x in t]\nprint(r[8])",
    "thread_local": "import threading\nl = threading.local(); l.x = 'v'; print(l.x)",
    "queue": "import queue; q = queue.Queue(); q.put('v'); print(q.get())",
    "timer": "import threading\nt = threading.Timer(0.01, print, ['v']); t.start(); t.join()",
    "multiprocessing_fork": "import multiprocessing as m\ndef f(x): return x * 2\nwith m.get_context('fork').Pool(2) as p: print('v' if p.map(f, range(5)) == [0, 2, 4, 6, 8] else '')",
    "multiprocessing_spawn": "import multiprocessing as m\nwith m.get_context('spawn').Pool(2) as p: print('v' if p.map(abs, [-1, -2]) == [1, 2] else '')",
    "multiprocessing_forkserver": "import multiprocessing as m\nwith m.get_context('forkserver').Pool(1) as p: print('v' if p.map(abs, [-1]) == [1] else '')",
    "multiprocessing_queue": (
        "import multiprocessing as m\nc = m.get_context('fork')\ndef f(q): q.put('v')\nq = c.Queue()\n"
        "p = c.Process(target=f, args=[q]); p.start(); print(q.get()); p.join()"),
    "multiprocessing_manager": "import multiprocessing as m\nwith m.get_context('fork').Manager() as g:\n  d = g.dict(); d['k'] = 'v'; print(d['k'])",
    "shared_memory": "from multiprocessing.shared_memory import SharedMemory\ns = SharedMemory(create=True, size=10); s.buf[0] = 118; print(chr(s.buf[0])); s.close(); s.unlink()",
    "semaphore": "import multiprocessing as m; l = m.Lock(); l.acquire(); l.release(); print('v')",
    "process_pool": "from concurrent.futures import ProcessPoolExecutor as P\ndef f(x): return x\nwith P(2) as p: print(p.submit(f, 'v').result())",
    "thread_pool": "from concurrent.futures import ThreadPoolExecutor as P\nwith P(2) as p: print(p.submit(lambda: 'v').result())",
    "subprocess": "import subprocess; print(subprocess.run(['echo', 'v'], capture_output=True, text=True, check=True).stdout, end='')",
    "subprocess_pipe": "import subprocess; print(subprocess.check_output('echo v | cat | tr v v', shell=True, text=True), end='')",
    "subprocess_python": "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(\"v\")'], text=True), end='')",
    "subprocess_input": "import subprocess; print(subprocess.run(['cat'], input='v', capture_output=True, text=True).stdout)",
    "subprocess_timeout": "import subprocess\ntry: subprocess.run(['sleep', '9'], timeout=0.05)\nexcept subprocess.TimeoutExpired: print('v')",
    "subprocess_big": "import subprocess; print('v' if len(subprocess.check_output('head -c 5000000 /dev/zero', shell=True)) == 5000000 else '')",
    "popen": "import os; print(os.popen('echo v').read(), end='')",
    "signal": "import signal, os\nsignal.signal(signal.SIGUSR1, lambda *a: print('v')); os.kill(os.getpid(), signal.SIGUSR1)",
    "alarm": "import signal\ndef h(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, h); signal.setitimer(signal.ITIMER_REAL, 0.01)\ntry: signal.pause()\nexcept TimeoutError: print('v')",
    "sqlite3": "import sqlite3\nc = sqlite3.connect('a.db'); c.execute('create table t (x)'); c.execute('insert into t values (?)', ['v']); c.commit()\nprint(sqlite3.connect('a.db').execute('select x from t').fetchone()[0])",
    "sqlite3_wal": "import sqlite3\nc = sqlite3.connect('w.db'); print('v' if c.execute('pragma journal_mode=wal').fetchone() == ('wal',) else '')",
    "dbm": "import dbm.dumb\nwith dbm.dumb.open('d', 'c') as d:\n  d['k'] = 'v'; print(d['k'].decode())",
    "shelve": "import shelve\nwith shelve.open('s') as s:\n  s['k'] = 'v'; print(s['k'])",
    "tempfile": "import tempfile\nwith tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile('w+', dir=d) as f:\n  f.write('v'); f.seek(0); print(f.read())",
    "tempfile_anonymous": "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n  f.write('v'); f.seek(0); print(f.read())",
    "pathlib": "from pathlib import Path\np = Path('a/b'); p.mkdir(parents=True); (p / 'c').write_text('v'); print(next(Path().rglob('c')).read_text())",
    "home": "from pathlib import Path; (Path.home() / 'h').write_text('v'); print(open('/workspace/h').read())",
    "shutil": "import shutil, os\nos.mkdir('a'); open('a/b', 'w').write('v'); shutil.copytree('a', 'c'); shutil.move('c/b', 'd'); shutil.rmtree('a'); print(open('d').read())",
    "shutil_copy2": "import shutil; open('a', 'w').write('v'); shutil.copy2('a', 'b'); print(open('b').read())",
    "zipfile": "import zipfile\nwith zipfile.ZipFile('z', 'w') as z: z.writestr('a', 'v')\nprint(zipfile.ZipFile('z').read('a').decode())",
    "tarfile": "import tarfile\nopen('a', 'w').write('v')\nwith tarfile.open('t.tgz', 'w:gz') as t: t.add('a')\nprint(tarfile.open('t.tgz').extractfile('a').read().decode())",
    "compression": "import gzip, bz2, lzma, zlib\nprint(*{m.decompress(m.compress(b'v')).decode() for m in (gzip, bz2, lzma, zlib)})",
    "mmap": "import mmap\nopen('m', 'wb').write(b'v' * 4096)\nwith open('m', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: print(chr(m[9]))",
    "ctypes": "import ctypes; print(ctypes.CDLL(None).toupper(ord('v')) == ord('V') and 'v')",
    "ctypes_callback": "import ctypes\nf = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1); print('v' if f(1) == 2 else '')",
    "decimal": "from decimal import Decimal as D; print('v' if D('0.1') + D('0.2') == D('0.3') else '')",
    "fractions": "from fractions import Fraction as F; print('v' if F(1, 3) * 3 == 1 else '')",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(1, 1)\nr = unittest.main(exit=False).result; print('v' if r.wasSuccessful() and r.testsRun == 1 else r)",
    "doctest": "import doctest\ndef f():\n  '''\n  >>> 1 + 1\n  2\n  '''\nprint('v' if doctest.testmod().attempted == 1 else '')",
    "pickle": "import pickle\nclass C:\n  def __init__(self): self.x = 'v'\nprint(pickle.loads(pickle.dumps(C())).x)",
    "copy": "import copy; print(copy.deepcopy({'k': ['v']})['k'][0])",
    "json": "import json; print(json.loads(json.dumps({'k': 'v'}))['k'])",
    "get_type_hints": "import typing\ndef f(x: 'int') -> 'str': ...\nprint('v' if typing.get_type_hints(f) == {'x': int, 'return': str} else '')",
    "dataclass_hints": "from __future__ import annotations\nimport dataclasses, typing\n@dataclasses.dataclass\nclass A:\n  x: typing.ClassVar[int] = 1\n  y: str = 'v'\nprint(A().y, end='\\n' if len(dataclasses.fields(A)) == 1 else 'no')",
    "getsource": "import inspect\ndef f(): return 'v'\nprint(inspect.getsource(f).split(\"'\")[1])",
    "logging": "import logging, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s'); logging.warning('v')",
    "warnings": "import warnings\nwith warnings.catch_warnings(record=True) as w:\n  warnings.simplefilter('always'); warnings.warn('v')\nprint(w[0].message)",
    "zoneinfo": "import zoneinfo, datetime; print('v' if datetime.datetime.now(zoneinfo.ZoneInfo('UTC')).tzname() == 'UTC' else '')",
    "time": "import time; print('v' if time.tzname[0] == 'UTC' and time.time() > 1.6e9 else time.tzname)",
    "locale": "import locale; locale.setlocale(locale.LC_ALL, ''); print('v' if locale.getlocale()[1] == 'UTF-8' else locale.getlocale())",
    "getuser": "import getpass; print('v' if getpass.getuser() == 'sandbox' else getpass.getuser())",
    "pwd": "import pwd, os, grp; print('v' if pwd.getpwuid(os.getuid()).pw_name == 'sandbox' == grp.getgrgid(os.getgid()).gr_name else '')",
    "hostname": "import socket, platform; print('v' if socket.gethostname() == platform.node() == 'sandbox' else '')",
    "platform": "import platform; print('v' if platform.python_implementation() == 'CPython' and platform.machine() else '')",
    "sysconfig": "import sysconfig; print('v' if sysconfig.get_path('stdlib').startswith('/opt/python') else sysconfig.get_path('stdlib'))",
    "random": "import random, secrets, uuid; print('v' if len({random.random(), secrets.token_hex(), str(uuid.uuid4())}) == 3 else '')",
    "hashlib": "import hashlib; print('v' if hashlib.sha256(b'').hexdigest().startswith('e3b0c442') and hashlib.md5(b'') else '')",
    "ssl": "import ssl; print('v' if ssl.create_default_context() else '')",
    "hmac": "import hmac; print('v' if hmac.compare_digest('a', 'a') else '')",
    "re": "import re; print(re.sub('x+', 'v', 'xxx'))",
    "itertools": "import itertools, functools, operator; print('v' if functools.reduce(operator.add, itertools.islice(itertools.count(), 4)) == 6 else '')",
    "contextlib": "import contextlib\n@contextlib.contextmanager\ndef c(): yield 'v'\nwith c() as x: print(x)",
    "contextvars": "import contextvars; c = contextvars.ContextVar('c'); c.set('v'); print(c.get())",
    "weakref": "import weakref\nclass C: pass\nc = C(); w = weakref.ref(c); del c; print('v' if w() is None else '')",
    "gc": "import gc; print('v' if gc.isenabled() and gc.collect() >= 0 else '')",
    "tracemalloc": "import tracemalloc; tracemalloc.start(); x = [0] * 1000; print('v' if tracemalloc.get_traced_memory()[0] else ''); tracemalloc.stop()",
    "cprofile": "import cProfile, io, pstats\np = cProfile.Profile(); p.runcall(sum, [1]); print('v' if pstats.Stats(p, stream=io.StringIO()).total_calls else '')",
    "trace": "import sys\ns = []\ndef t(f, e, a): s.append(e); return t\ndef g(): pass\nsys.settrace(t); g(); sys.settrace(None); print('v' if 'call' in s else s)",
    "timeit": "import timeit; print('v' if timeit.timeit('1', number=10) >= 0 else '')",
    "ast": "import ast; print(ast.literal_eval(ast.unparse(ast.parse(\"'v'\"))))",
    "exec_eval": "exec('x = 1'); print('v' if eval('x') == 1 else '')",
    "code": "import code; i = code.InteractiveInterpreter({}); i.runsource(\"print('v')\")",
    "import_own_module": "open('mine.py', 'w').write('x = \"v\"')\nimport mine; print(mine.x)",
    "import_own_package": "import os; os.makedirs('pkg/sub'); open('pkg/__init__.py', 'w'); open('pkg/sub/__init__.py', 'w').write('x = \"v\"')\nfrom pkg.sub import x; print(x)",
    "runpy": "import runpy; open('r.py', 'w').write('print(\"v\" if __name__ == \"__main__\" else 0)'); runpy.run_path('r.py', run_name='__main__')",
    "compileall": "import py_compile; open('c.py', 'w').write('x = 1'); print('v' if py_compile.compile('c.py') else '')",
    "select": "import select, os; r, w = os.pipe(); os.write(w, b'x'); p = select.epoll(); p.register(r); print('v' if p.poll(1) else '')",
    "selectors": "import selectors, os; s = selectors.DefaultSelector(); r, w = os.pipe(); s.register(r, 1); os.write(w, b'x'); print('v' if s.select(1) else '')",
    "socketpair": "import socket; a, b = socket.socketpair(); a.send(b'v'); print(b.recv(1).decode())",
    "pty_absent_is_an_error": "import pty\ntry: pty.openpty()\nexcept OSError: print('v')\nelse: print('v')",
    "fcntl": "import fcntl\nf = open('l', 'w'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX); print('v')",
    "resource": "import resource; print('v' if resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256) else resource.getrlimit(7))",
    "faulthandler": "import faulthandler, sys; faulthandler.dump_traceback(file=sys.stderr); print('v')",
    "csv": "import csv, io; print(next(csv.reader(io.StringIO('v,w')))[0])",
    "xml": "import xml.etree.ElementTree as E; print(E.fromstring('<a>v</a>').text)",
    "html": "import html; print('v' if html.escape('<') == '&lt;' else '')",
    "argparse": "import argparse; p = argparse.ArgumentParser(); p.add_argument('-x'); print(p.parse_args(['-x', 'v']).x)",
    "statistics": "import statistics, math, cmath; print('v' if statistics.mean([1, 3]) == 2 else '')",
    "heapq": "import heapq, bisect, collections, array, struct; print('v' if heapq.nsmallest(1, [2, 1]) == [1] else '')",
    "datetime": "import datetime, calendar; print('v' if datetime.date(2024, 2, 29).isoformat() == '2024-02-29' else '')",
    "textwrap": "import textwrap, string, difflib, pprint; print(textwrap.dedent('  v'))",
    "typing_protocol": "import typing\nclass P(typing.Protocol):\n  def f(self): ...\nT = typing.TypeVar('T')\nclass G(typing.Generic[T]): ...\nprint('v' if G[int] else '')",
    "namedtuple": "import collections, pickle; N = collections.namedtuple('N', 'x'); print(pickle.loads(pickle.dumps(N('v'))).x)",
    "sched": "import sched; s = sched.scheduler(); s.enter(0.001, 1, print, ['v']); s.run()",
    "http_server_absent": "import socket\ntry: socket.create_connection(('127.0.0.1', 80), 1)\nexcept OSError: print('v')",
    "urllib_absent": "import urllib.request, urllib.error\ntry: urllib.request.urlopen('http://example.com', timeout=1)\nexcept urllib.error.URLError: print('v')",
    "dns_absent": "import socket\ntry: socket.getaddrinfo('example.com', 80)\nexcept OSError: print('v')",
    "tkinter_absent": "try:\n  import tkinter; tkinter.Tk()\nexcept Exception: print('v')",
    "exit_handlers": "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'import atexit; atexit.register(print, \"v\")'], text=True), end='')",
    "walrus": "print(y := 'v')",
    "exception_groups": "try:\n  raise ExceptionGroup('g', [ValueError('v')])\nexcept* ValueError as g: print(g.exceptions[0])",
    "async_generators": "import asyncio\nasync def g():\n  yield 'v'\nasync def f():\n  async for x in g(): print(x)\nasyncio.run(f())",
    "metaclass": "class M(type):\n  def __call__(c): return 'v'\nclass C(metaclass=M): pass\nprint(C())",
    "descriptors": "class D:\n  def __get__(s, i, o): return 'v'\nclass C: x = D()\nprint(C().x)",
    "big_numbers": "print('v' if len(str(2 ** 10_000)) == 3011 else '')",
    "sys_exit_in_thread": "import threading, sys\nt = threading.Thread(target=sys.exit); t.start(); t.join(); print('v')",
    "environ": "import os; os.environ['K'] = 'v'; print(os.popen('echo $K').read(), end='')",
    "getcwd": "import os; os.mkdir('v'); os.chdir('v'); print(os.path.basename(os.getcwd()))",
    "symlinks": "import os; open('t', 'w').write('v'); os.symlink('t', 'l'); os.link('t', 'h'); print(open('l').read() if os.stat('h').st_nlink == 2 else '')",
    "scandir": "import os; os.mkdir('v'); print(next(os.scandir()).name)",
    "access_times": "import os; open('t', 'w'); os.utime('t', (1, 2)); print('v' if os.stat('t').st_mtime == 2 else '')",
    "fifo": "import os, threading\nos.mkfifo('f'); threading.Thread(target=lambda: open('f', 'w').write('v')).start(); print(open('f').read())",
    "statvfs": "import os, shutil; print('v' if shutil.disk_usage('/workspace').total == 32 << 20 else shutil.disk_usage('/workspace'))",
    "cpu_count": "import os; print('v' if os.cpu_count() and len(os.sched_getaffinity(0)) else '')",
    "uname": "import os; print('v' if os.uname().sysname == 'Linux' else '')",
    "pydoc": "import pydoc; print('v' if 'sum' in pydoc.render_doc(sum) else '')",
    "idle_exit": "import builtins; print('v' if builtins.exit and builtins.help else '')",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
async def test_module_works(box: Sandbox, name: str) -> None:
    result = await box.run_code(PROGRAMS[name])
    assert said(result) == ("ok", 0, None), result.stderr
    assert result.stdout == "v\n" or result.stdout == "v"
    await works(box)


async def test_class_of_an_earlier_step_can_be_pickled_for_a_worker(box: Sandbox) -> None:
    await box.run_code("class C:\n  def __init__(self, x): self.x = x\ndef f(c): return c.x * 2")
    source = (
        "from concurrent.futures import ProcessPoolExecutor as P\nwith P(1) as p: print(p.submit(f, C(21)).result())"
    )
    assert (await box.run_code(source)).stdout == "42\n"


async def test_source_of_a_function_of_an_earlier_step(box: Sandbox) -> None:
    await box.run_code("def f():\n    return 1")
    await box.run_code("x = 1")
    assert (await box.run_code("import inspect; print(inspect.getsource(f))")).stdout == "def f():\n    return 1\n"
