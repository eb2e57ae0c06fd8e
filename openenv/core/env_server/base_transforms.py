"""Transforms to build on."""

from collections.abc import Sequence

from openenv.core.env_server.interfaces import ObsT, Transform


class CompositeTransform(Transform[ObsT]):
    """Applies transforms one after another."""

    def __init__(self, transforms: Sequence[Transform[ObsT]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, observation: ObsT) -> ObsT:
        """The observation after every transform."""
        for transform in self.transforms:
            observation = transform(observation)
        return observation


class NullTransform(Transform[ObsT]):
    """Leaves the observation as it is."""

    def __call__(self, observation: ObsT) -> ObsT:
        """The same observation."""
        return observation
