"""Transport limits that client and server must agree on."""

MAX_MESSAGE_MB = 100.0
MAX_MESSAGE_BYTES = int(MAX_MESSAGE_MB * 1024 * 1024)
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0
SESSION_HEADER = "X-OpenEnv-Session"
