"""Whether this machine can keep the promises of a policy: found out by trying, never by looking at versions.

`diagnose` tries the parts one by one, so that a refusal has a name and a remedy, and then the whole: it starts the
driver, looks around from inside a sandbox, and runs into the limits.
"""

from __future__ import annotations

import sys

from sandbox.doctor.findings import Finding, Report
from sandbox.doctor.show import show
from sandbox.policy import Policy

__all__ = ["Finding", "Report", "diagnose", "show"]


def diagnose(policy: Policy) -> Report:
    """Try everything that `policy` needs on this machine. Takes a few seconds; leaves nothing behind."""
    if sys.platform != "linux":
        remedy = "run the server in Docker (see README.md): docker run, or Docker Desktop's Linux machine"
        platform = Finding.missing("platform", f"{sys.platform} is not Linux; the sandbox needs its kernel", remedy)
        return Report(driver=policy.driver, findings=(platform,))
    from sandbox.doctor import host, inside

    return Report(driver=policy.driver, findings=(*host.findings(policy), *inside.findings(policy)))
