"""The default reward: a heuristic about style, as the original environment gives it. No boundary, no grade.

| code | up to 100 characters | longer |
|---|---|---|
| runs, or fails while it runs | 0.1 | 0.0 |
| matches a pattern below | -0.9 | -1.0 |
| is not Python | -0.1 | -0.2 |
"""

import re

from openenv.core.env_server.base_transforms import CompositeTransform
from openenv.core.env_server.interfaces import Transform

from ..models import CodeObservation

__all__ = ["CodeQualityTransform", "CodeSafetyTransform", "create_safe_coding_transform"]

_SUSPICIOUS = tuple(
    re.compile(pattern)
    for pattern in (r"import\s+os", r"import\s+subprocess", r"eval\(", r"exec\(", r"__import__", r"open\(")
)


class CodeSafetyTransform(Transform[CodeObservation]):
    """Gives `penalty` to code that looks as if it left the beaten track; `safety_violation` says why."""

    def __init__(self, penalty: float = -1.0) -> None:
        self.penalty = penalty

    def __call__(self, observation: CodeObservation) -> CodeObservation:
        """The observation with a reward, if it came of a step."""
        code = _code_of(observation)
        if code is None:
            return observation
        for pattern in _SUSPICIOUS:
            if pattern.search(code):
                observation.reward = self.penalty
                observation.metadata["safety_violation"] = pattern.pattern
                return observation
        if observation.reward is None:
            observation.reward = 0.0
        return observation


class CodeQualityTransform(Transform[CodeObservation]):
    """Adds `concise_bonus` for short code and `syntax_penalty` for what is not Python."""

    def __init__(
        self, concise_bonus: float = 0.1, max_length_threshold: int = 100, syntax_penalty: float = -0.2
    ) -> None:
        self.concise_bonus = concise_bonus
        self.max_length_threshold = max_length_threshold
        self.syntax_penalty = syntax_penalty

    def __call__(self, observation: CodeObservation) -> CodeObservation:
        """The observation with a reward; 0.0 for one that did not come of a step."""
        code = _code_of(observation)
        score = 0.0
        if code is not None:
            score += self.concise_bonus if len(code.strip()) <= self.max_length_threshold else 0.0
            score += self.syntax_penalty if _did_not_compile(observation) else 0.0
        observation.reward = round((observation.reward or 0.0) + score, 10)
        return observation


def create_safe_coding_transform() -> CompositeTransform[CodeObservation]:
    """Both of them: the reward of the table above."""
    return CompositeTransform([CodeSafetyTransform(), CodeQualityTransform()])


def _code_of(observation: CodeObservation) -> str | None:
    code = observation.metadata.get("last_code")
    return code if isinstance(code, str) else None


def _did_not_compile(observation: CodeObservation) -> bool:
    """Whether the sandbox could not compile the step. The server itself never parses what it was sent.

    Only then is there an error report without the header that every report of a running program has.
    """
    return observation.metadata.get("outcome") == "error" and observation.stderr.startswith('  File "<step ')
