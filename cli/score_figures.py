"""Times of queries and errors of their scores as figures, the same for encrypted scoring and its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOP = 10


class Accuracy:
    """Scores against plaintext, query by query."""

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._bounds: list[float] = []
        self._overlaps: list[float] = []
        self._within: list[bool] = []
        self._exact: list[float] = []

    def add(self, found: NDArray[Any], truth: NDArray[Any], bound: float, exact: NDArray[Any] | None = None) -> None:
        """One query: float64[items] found, in plaintext, and in plaintext of rounded vectors where those count.

        bound: the stated largest |score - plaintext score| of this query; 0 where none is stated.
        """
        import numpy as np

        self._errors.append(float(np.abs(found - truth).max()))
        self._bounds.append(bound)
        if exact is not None:
            self._exact.append(float(np.abs(found - exact).max()))
        count = min(_TOP, len(truth))
        mine, best = (np.argpartition(-scores, count - 1)[:count] for scores in (found, truth))
        self._overlaps.append(len(np.intersect1d(mine, best)) / count)
        # Two scores that lie further apart than twice the bound keep their order.
        self._within.append(bool(truth[mine].min() >= truth[best].min() - 2 * bound))

    def figures(self) -> dict[str, float]:
        """Over all queries. top10_within_bound: the share in which no item of the ten best is wrong by the bound.

        max_abs_error_stated: the largest bound of a query. max_error_of_stated: the largest share that an error had of
        its own query's bound. These three only where bounds are stated.
        """
        import numpy as np

        found = {"max_abs_error": max(self._errors), "top10_overlap": float(np.mean(self._overlaps))}
        if min(self._bounds) > 0:
            found["top10_within_bound"] = float(np.mean(self._within))
            found["max_abs_error_stated"] = max(self._bounds)
            pairs = zip(self._errors, self._bounds, strict=True)
            found["max_error_of_stated"] = max(error / bound for error, bound in pairs)
        return {**found, "max_abs_error_of_rounded": max(self._exact)} if self._exact else found


def timings(server_ms: list[float], server_cpu_ms: list[float], client_ms: list[float]) -> dict[str, float]:
    """Percentiles, and how many queries a second one after another makes.

    server_ms_best, and the processor's time of all threads, say what a machine without other work would do.
    """
    import numpy as np

    return {
        "server_ms_p50": float(np.percentile(server_ms, 50)),
        "server_ms_p99": float(np.percentile(server_ms, 99)),
        "server_ms_best": min(server_ms),
        "server_cpu_ms_p50": float(np.percentile(server_cpu_ms, 50)),
        "client_ms_p50": float(np.percentile(client_ms, 50)),
        "queries_per_s": 1000.0 / float(np.mean(server_ms)),
    }
