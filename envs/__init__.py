"""Environments, importable from a checkout. Each is a package of its own: `envs.X` is installed as `X`."""
