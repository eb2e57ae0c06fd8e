"""What was found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Status = Literal["ok", "replaced", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None
    required: bool = True  # by the policy, with the default driver

    @classmethod
    def ok(cls, name: str, detail: str) -> Self:
        """It works."""
        return cls(name=name, status="ok", detail=detail)

    @classmethod
    def replaced(cls, name: str, detail: str, remedy: str) -> Self:
        """Something weaker stands in for it; `remedy` brings the real one."""
        return cls(name=name, status="replaced", detail=detail, remedy=remedy)

    @classmethod
    def missing(cls, name: str, detail: str, remedy: str, *, required: bool = True) -> Self:
        """It does not work."""
        return cls(name=name, status="missing", detail=detail, remedy=remedy, required=required)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was found for one driver."""

    driver: str
    findings: tuple[Finding, ...]

    @property
    def able(self) -> bool:
        """Whether the driver can keep the policy here, be it with replacements."""
        return not any(finding.status == "missing" and finding.required for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "driver": self.driver,
            "able": self.able,
            "findings": [asdict(finding) for finding in self.findings],
        }
