"""The worlds that scenes are drawn from."""

import numpy as np

from .scenes import Scene, sample_scene


def sample_world(world: str, rng: np.random.Generator) -> Scene:
    """A random scene of a world, `plain` or `rich`."""
    if world == "plain":
        return sample_scene(rng)
    raise NotImplementedError(world)
