"""Drivers: ways to make a sandbox, behind the contract of `base`."""

from __future__ import annotations

from sandbox.drivers.base import Driver
from sandbox.errors import PolicyError
from sandbox.policy import Policy


def open_driver(policy: Policy) -> Driver:
    """The driver that the policy names, not started."""
    if policy.driver == "zygote":
        from sandbox.drivers.zygote import ZygoteDriver

        return ZygoteDriver(policy)
    raise PolicyError(f'driver = "{policy.driver}": this version has the driver "zygote"')
