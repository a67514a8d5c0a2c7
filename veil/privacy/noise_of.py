"""The noise that a release asks for: the one place where a mechanism's name becomes a sampler.

Guarantee: `draw` returns exactly the law that `veil.jobs.spec.Release` states for the release's mechanism, which is the
law that `veil.privacy.accountant` counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy.laplace import discrete_laplace
from veil.privacy.noise import ByteSource, rounded_gaussian


def draw(release: Release, source: ByteSource) -> npt.NDArray[np.int64]:
    """One full draw of the release's noise, int64 of its shape, in grid steps."""
    if release.mechanism == "rounded-gaussian":
        values = rounded_gaussian(release.size, release.sigma, source)
    elif release.mechanism == "discrete-laplace":
        values = discrete_laplace(release.size, release.sigma, source)
    else:
        raise ConfigError(f"got mechanism {release.mechanism!r}, which this version does not have")
    return values.reshape(release.shape)
