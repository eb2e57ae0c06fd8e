"""How the server makes environments and calls into them: on the event loop, or on a thread of the session."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints

from openenv.core._portal import run_blocking
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.worker import SessionThread

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class EnvironmentFault(Exception):  # noqa: N818
    """Code of an environment raised; `error` is what. Exits and interrupts are faults like any other."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        text = str(error)
        if not isinstance(error, Exception) or not text:
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        super().__init__(text)


class _Method(NamedTuple):
    """One operation of an environment class: which attribute, where it runs, which keywords it takes."""

    name: str
    on_loop: bool
    accepted: frozenset[str] | None
    reserved: frozenset[str]

    def select(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if self.accepted is None:
            return {key: value for key, value in keywords.items() if key not in self.reserved}
        return {key: value for key, value in keywords.items() if key in self.accepted}


def _method(cls: type, name: str, positional: int) -> _Method:
    asynchronous = getattr(cls, f"{name}_async", None)
    overridden = asynchronous is not None and asynchronous is not getattr(Environment, f"{name}_async")
    chosen = f"{name}_async" if overridden else name
    function = getattr(cls, chosen)
    parameters = list(inspect.signature(function).parameters.values())
    rest = parameters[positional:]
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in rest)
    return _Method(
        name=chosen,
        on_loop=overridden or inspect.iscoroutinefunction(function),
        accepted=None if takes_any else frozenset(each.name for each in rest if each.kind in _KEYWORD_KINDS),
        reserved=frozenset(each.name for each in parameters[:positional]),
    )


class _Plan(NamedTuple):
    """Where each operation of an environment class runs."""

    reset: _Method
    step: _Method
    closes_on_loop: bool

    @property
    def needs_thread(self) -> bool:
        return not (self.reset.on_loop and self.step.on_loop)

    @property
    def reads_state_on_loop(self) -> bool:
        return self.reset.on_loop or self.step.on_loop


@lru_cache(maxsize=256)
def _plan_of(cls: Any) -> _Plan:
    reset, step = _method(cls, "reset", 1), _method(cls, "step", 2)
    closer = getattr(cls, "close_async", None)
    overridden = closer is not None and closer is not Environment.close_async
    return _Plan(reset, step, overridden or (reset.on_loop and step.on_loop))


class EnvironmentFactory:
    """What `create_app` was given: a class, a function, a partial of either, or one ready instance.

    An instance serves one session at a time and is never closed by a session.
    """

    def __init__(self, source: Any) -> None:
        self.shared_instance = _is_instance(source)
        if not callable(source) and not self.shared_instance:
            raise TypeError(f"env must be a callable (class or factory function), got {type(source).__name__}")
        self._source: Callable[[], Any] = (lambda: source) if self.shared_instance else source
        target = source
        while isinstance(target, functools.partial):
            target = target.func
        self.cls = type(source) if self.shared_instance else _class_made_by(target)
        self.name: str = getattr(target, "__name__", type(target).__name__)
        self._is_async = inspect.iscoroutinefunction(target)

    @property
    def runs_on_loop(self) -> bool:
        """Whether the environment may be built on the event loop: it is known to live there."""
        return self._is_async or (self.cls is not None and not _plan_of(self.cls).needs_thread)

    def __call__(self) -> Any:
        """An environment, or an awaitable of one."""
        return self._source()

    def class_for_checks(self) -> type:
        """The environment's class; one that a factory does not declare is found by calling it once."""
        if self.cls is None:
            self.cls = run_blocking(self._class_of_sample())
        return self.cls

    async def _class_of_sample(self) -> type:
        sample = self._source()
        if inspect.isawaitable(sample):
            sample = await sample
        closed = getattr(sample, "close_async", getattr(sample, "close", None))
        if closed is not None and inspect.isawaitable(outcome := closed()):
            await outcome
        return type(sample)


def _is_instance(source: Any) -> bool:
    if isinstance(source, type):
        return False
    return isinstance(source, Environment) or (
        not callable(source) and callable(getattr(source, "step", None)) and hasattr(source, "reset")
    )


def _class_made_by(target: Any) -> type | None:
    if isinstance(target, type):
        return target
    try:
        declared = get_type_hints(target).get("return")
    except (NameError, TypeError, AttributeError):  # no hints, or hints that cannot be resolved here
        return None
    concrete = isinstance(declared, type) and hasattr(declared, "step") and not inspect.isabstract(declared)
    return declared if concrete else None


class EnvironmentHost:
    """One environment, and the only way to call it. What it raises comes out as EnvironmentFault."""

    def __init__(self, factory: EnvironmentFactory, thread: SessionThread, *, owns_thread: bool) -> None:
        self._factory = factory
        self._thread = thread
        self._owns_thread = owns_thread
        self._environment: Any = None
        self._plan: _Plan | None = None
        self._running = 0
        self._idle: asyncio.Event | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is running, abandoned ones included."""
        return self._running > 0 or (self._owns_thread and self._thread.busy)

    @property
    def blocked_thread(self) -> bool:
        """Whether a blocking call is running that nothing can stop."""
        return self._thread.busy

    @property
    def step_can_be_cancelled(self) -> bool:
        """Whether `step` runs on the event loop."""
        return self._plan is not None and self._plan.step.on_loop

    @property
    def step_knows_deadlines(self) -> bool:
        """Whether `step` takes `timeout_s`."""
        accepted = self._plan.step.accepted if self._plan is not None else frozenset()
        return accepted is None or "timeout_s" in accepted

    async def build(self) -> None:
        """Make the environment."""
        environment = await self._contained(self._make())
        cls: Any = type(environment)
        self._environment = environment
        self._plan = _plan_of(cls)
        if not self._plan.needs_thread and self._owns_thread:
            self._thread.stop()

    async def _make(self) -> Any:
        if self._factory.runs_on_loop:
            made = self._factory()
        else:
            made = await self._thread.call(self._factory)
        return await made if inspect.isawaitable(made) else made

    async def reset(self, keywords: Mapping[str, Any]) -> Any:
        """Start an episode with those keywords that the environment takes."""
        assert self._plan is not None
        method = self._plan.reset
        return await self._contained(self._invoke(method, **method.select(keywords)))

    async def step(self, action: Any, keywords: Mapping[str, Any]) -> Any:
        """Act, with those keywords that the environment takes."""
        assert self._plan is not None
        method = self._plan.step
        return await self._contained(self._invoke(method, action, **method.select(keywords)))

    async def state(self) -> Any:
        """The environment's state, whether it is an attribute, a property or a method."""
        assert self._plan is not None
        return await self._contained(self._read(self._state_now, on_loop=self._plan.reads_state_on_loop))

    async def metadata(self) -> Any:
        """What the environment tells about itself."""
        assert self._plan is not None
        tell = self._environment.get_metadata
        return await self._contained(self._read(tell, on_loop=self._plan.reads_state_on_loop))

    async def close(self) -> None:
        """Close the environment after every running call, and end the thread."""
        try:
            if self._plan is not None and not self._factory.shared_instance:
                await self._contained(self._close(self._plan), counts=False)
        finally:
            if self._owns_thread:
                self._thread.stop()

    async def _invoke(self, method: _Method, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self._environment, method.name)
        if method.on_loop:
            return await function(*args, **kwargs)
        return await self._thread.call(function, *args, **kwargs)

    async def _read(self, function: Callable[[], Any], *, on_loop: bool) -> Any:
        value = function() if on_loop else await self._thread.call(function)
        return await value if inspect.isawaitable(value) else value

    def _state_now(self) -> Any:
        state = self._environment.state
        return state() if inspect.isroutine(state) else state

    async def _close(self, plan: _Plan) -> None:
        while self._running:
            self._idle = asyncio.Event()
            await self._idle.wait()
        if not plan.closes_on_loop:
            outcome = await self._thread.call(getattr(self._environment, "close", _nothing))
        else:
            if plan.needs_thread:
                await self._thread.call(_nothing)  # an abandoned blocking call may still be running
            closer = getattr(self._environment, "close_async", getattr(self._environment, "close", _nothing))
            outcome = closer()
        if inspect.isawaitable(outcome):
            await outcome

    async def _contained(self, call: Awaitable[Any], *, counts: bool = True) -> Any:
        # Nothing that an environment raises may pass: an exit or an interrupt that reaches the event loop
        # ends the server, and a CancelledError of its own making would look like ours.
        self._running += counts
        try:
            return await call
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EnvironmentFault(error) from error
        except GeneratorExit:
            raise
        except BaseException as error:
            raise EnvironmentFault(error) from error
        finally:
            self._running -= counts
            if not self._running and self._idle is not None:
                self._idle.set()


def _nothing() -> None:
    return None
