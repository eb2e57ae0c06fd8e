"""The HTTP transport: `/reset`, `/step`, `/state` and `/session`, and what the server tells about itself."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.routing import WebSocketRoute

from openenv.core import _json
from openenv.core._limits import MAX_MESSAGE_BYTES, SESSION_HEADER
from openenv.core.env_server.dispatch import (
    Failed,
    GetState,
    Observed,
    Reply,
    Reset,
    Step,
    failed,
    invalid,
)
from openenv.core.env_server.exceptions import RequestRefused
from openenv.core.env_server.http_sessions import HttpSessions, checked_name
from openenv.core.env_server.origins import OriginPolicy
from openenv.core.env_server.route_config import GetEndpointConfig, register_get_endpoints
from openenv.core.env_server.types import (
    EnvironmentMetadata,
    HealthResponse,
    ResetRequest,
    ResetResponse,
    SchemaResponse,
    ServerMode,
    StepRequest,
    StepResponse,
    WSErrorCode,
)

if TYPE_CHECKING:
    from openenv.core.env_server.app import HTTPEnvServer

Model = TypeVar("Model", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]

_SESSION_PARAMETER = {
    "name": SESSION_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9_.-]+$"},
    "description": "Names a session of the caller's own; without it, callers share the default session",
}


def json_response(content: Any, status: int = 200) -> Response:
    """A response with `content` as its JSON body."""
    return Response(_json.dumps(content), status, media_type="application/json")


def response_of(reply: Reply) -> Response:
    """The response that carries `reply`."""
    if isinstance(reply, Failed):
        details = dict(reply.details)
        detail = details.pop("errors", reply.message)
        return json_response({"detail": detail, "code": reply.code.value, **details}, reply.http_status)
    payload = reply.payload
    try:
        if isinstance(reply, Observed):
            reward = payload["reward"]
            payload = {
                **payload,
                "reward": None if reward is None else float(reward),
                "metadata": payload.get("metadata"),
            }
        return json_response(payload)
    except (TypeError, ValueError) as error:
        return response_of(failed(WSErrorCode.EXECUTION_ERROR, str(error)))


class EpisodeRoutes:
    """Reset, step and state over HTTP, in the session that the header names."""

    def __init__(self, sessions: HttpSessions, origins: OriginPolicy) -> None:
        self._sessions = sessions
        self._origins = origins

    async def reset(self, request: Request) -> Response:
        """Start an episode in the caller's session."""
        body = await _body(request, ResetRequest, optional=True)
        return await self._answer(request, Reset(body.model_dump(exclude_unset=True)))

    async def step(self, request: Request) -> Response:
        """Act in the caller's session."""
        body = await _body(request, StepRequest)
        extras = dict(body.model_extra or {})
        if body.request_id is not None:
            extras["request_id"] = body.request_id
        return await self._answer(request, Step(body.action, body.timeout_s, extras))

    async def state(self, request: Request) -> Response:
        """The state of the caller's session."""
        return await self._answer(request, GetState())

    async def end(self, request: Request) -> Response:
        """End the caller's session: 204, or 404 if there is none."""
        name = checked_name(request.headers.get(SESSION_HEADER))
        if self._sessions.end(name):
            return Response(status_code=204)
        return json_response({"detail": "no such session", "code": WSErrorCode.SESSION_ERROR.value}, 404)

    async def _answer(self, request: Request, wanted: Reset | Step | GetState) -> Response:
        name = checked_name(request.headers.get(SESSION_HEADER))
        return response_of(await self._sessions.handle(name, wanted))

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint` behind the origin check, with refusals as responses."""

        async def call(request: Request) -> Response:
            if request.method != "GET" and not self._origins.allows(request.scope["headers"]):
                return json_response({"detail": "requests from pages of another origin are refused"}, 403)
            try:
                return await endpoint(request)
            except RequestRefused as refused:
                return response_of(Failed.of(refused))

        return call

    def register(self, router: APIRouter) -> None:
        """Add the routes."""
        table = (
            ("/reset", "POST", self.reset, ResetRequest, ResetResponse, "Start an episode"),
            ("/step", "POST", self.step, StepRequest, StepResponse, "Act"),
            ("/state", "GET", self.state, None, None, "State of the episode"),
            ("/session", "DELETE", self.end, None, None, "End the session"),
        )
        for path, method, endpoint, body, answer, summary in table:
            extra: dict[str, Any] = {"parameters": [_SESSION_PARAMETER]}
            if body is not None:
                content = {"application/json": {"schema": body.model_json_schema()}}
                extra["requestBody"] = {"required": body is StepRequest, "content": content}
            router.add_api_route(
                path,
                self.guarded(endpoint),
                methods=[method],
                summary=summary,
                description=endpoint.__doc__,
                tags=["episode"],
                response_model=None,
                responses={200: {"model": answer}} if answer is not None else None,
                openapi_extra=extra,
                name=endpoint.__name__,
            )


async def _body(request: Request, model: type[Model], *, optional: bool = False) -> Model:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_MESSAGE_BYTES:
            raise RequestRefused(
                WSErrorCode.VALIDATION_ERROR, f"the body exceeds {MAX_MESSAGE_BYTES} bytes", http_status=413
            )
    try:
        content = {} if optional and not raw.strip() else _json.loads(bytes(raw))
    except ValueError as error:
        message = f"Invalid JSON: {error}"
        problem = {"type": "json_invalid", "loc": ["body"], "msg": message}
        raise RequestRefused(WSErrorCode.INVALID_JSON, message, details={"errors": [problem]}) from error
    try:
        return model.model_validate({} if optional and content is None else content)
    except ValidationError as error:
        refusal = invalid("request", error)
        for problem in refusal.details["errors"]:
            problem["loc"] = ["body", *problem["loc"]]
        raise refusal from error


def _information(server: "HTTPEnvServer") -> list[GetEndpointConfig]:
    async def health() -> Response:
        return json_response({"status": "healthy"})

    async def metadata() -> Response:
        try:
            return json_response(await server.metadata())
        except RequestRefused as refused:
            return response_of(Failed.of(refused))

    async def schema() -> Response:
        return json_response(server.schema())

    return [
        GetEndpointConfig("/health", health, HealthResponse, "information", "Health", "Whether it serves"),
        GetEndpointConfig("/metadata", metadata, EnvironmentMetadata, "information", "Metadata", "What it is"),
        GetEndpointConfig("/schema", schema, SchemaResponse, "information", "Schemas", "JSON Schemas of its models"),
    ]


def build_router(server: "HTTPEnvServer", mode: ServerMode) -> APIRouter:
    """Every route of the server, `/ws` included; its lifespan ends the server's sessions."""
    router = APIRouter(lifespan=server.lifespan)
    register_get_endpoints(router, _information(server))
    if mode is ServerMode.SIMULATION:
        EpisodeRoutes(server.http_sessions, server.origins).register(router)
    # The endpoint is an ASGI application: a framework object per message would cost more than the message.
    router.routes.append(WebSocketRoute("/ws", server.websocket, name="websocket"))
    return router
