"""The import path that environments know; the parts live in `app`, `http` and `websocket`."""

from openenv.core.env_server.app import HTTPEnvServer, create_app, create_fastapi_app

__all__ = ["HTTPEnvServer", "create_app", "create_fastapi_app"]
