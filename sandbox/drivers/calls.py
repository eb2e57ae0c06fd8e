"""Functions of the host that guest code may call: JSON in, JSON out, counted, capped, and each with a deadline.

A synchronous function runs in a thread, so that a slow one delays neither another sandbox nor a deadline. A thread
cannot be stopped: what it does after its deadline goes on, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from sandbox.drivers.base import HostFunction
from sandbox.policy import HostFunctions

Answer = Callable[[bytes], None]


class HostCalls:
    """The calls of one run. `answer` sends the body of a reply."""

    def __init__(self, rules: HostFunctions, functions: Mapping[str, HostFunction], answer: Answer) -> None:
        self._rules = rules
        self._functions = functions
        self._answer = answer
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, request: Mapping[str, Any], size: int) -> None:
        """Answer one call, of `size` bytes. A new call means that the interpreter has given up the one before."""
        number = request.get("number")
        self._count += 1
        refusal = None
        if self._count > self._rules.max_calls_per_step:
            refusal = f"more than {self._rules.max_calls_per_step} calls in one step"
        elif size > self._rules.max_bytes:
            refusal = f"the arguments are larger than {self._rules.max_bytes} bytes"
        if refusal is not None:
            self._answer(_encode(number, {"error": refusal}))
            return
        self.stop()
        self._task = asyncio.get_running_loop().create_task(self._call(number, request))

    def stop(self) -> None:
        """Give up waiting for the call that is going on, if there is one."""
        if self._task is not None:
            self._task.cancel()

    async def _call(self, number: object, request: Mapping[str, Any]) -> None:
        try:
            answer = {"value": await self._result(request)}
            body = _encode(number, answer)
        except _RefusedError as refused:
            body = _encode(number, {"error": str(refused)})
        except (TypeError, ValueError, RecursionError) as error:
            body = _encode(number, {"error": f"the result is not JSON: {error}"})
        if len(body) > self._rules.max_bytes:
            body = _encode(number, {"error": f"the result is larger than {self._rules.max_bytes} bytes"})
        self._answer(body)

    async def _result(self, request: Mapping[str, Any]) -> Any:
        name, arguments, keywords = request.get("name"), request.get("args", []), request.get("kwargs", {})
        function = self._functions.get(name) if isinstance(name, str) else None
        if function is None or not isinstance(arguments, list) or not isinstance(keywords, dict):
            raise _RefusedError("there is no such host function")
        try:
            async with asyncio.timeout(self._rules.timeout_s) as deadline:
                return await _called(function, arguments, keywords)
        except Exception as error:  # the caller's function; its failure is the guest's answer
            if deadline.expired():
                raise _RefusedError(f"no answer within {self._rules.timeout_s:g} s") from None
            raise _RefusedError(_described(error)) from error


class _RefusedError(Exception):
    """Why a call gets no value; the guest is told."""


async def _called(function: HostFunction, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return await function(*arguments, **keywords)
    result = await asyncio.to_thread(function, *arguments, **keywords)
    return await result if inspect.isawaitable(result) else result


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _encode(number: object, answer: dict[str, Any]) -> bytes:
    """Only what JSON has: no NaN. A number that the guest made up goes back as it came."""
    body = json.dumps({"number": number, **answer}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return body.encode("utf-8", "surrogatepass")
