"""The server side; importing it needs the `server` extra."""
