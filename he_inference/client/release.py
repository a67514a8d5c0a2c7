"""The one way in which decrypted scores may leave the client: exact integers, or flooded and rounded; counted.

Why at all. Whoever made a response knows its ciphertext (y0, y1). A decryption is D = y0 + y1 s = m + e in the ring,
and scores at full precision give D back exactly, float32 included, because the encoding is a fixed invertible
transform. Then y1 s = D - y0 is linear in the secret key s and is solved in milliseconds (B. Li and D. Micciancio,
"On the security of homomorphic encryption on approximate numbers", Eurocrypt 2021, eprint 2020/1533).
tests/unit/he_inference/client has that attack on real responses: it finds the key from raw scores and fails on
released ones.

Exact sets (BFV). D is rounded to the plaintext m, an integer: no e is left in what comes out, so a release tells what
the scores tell and nothing about s. This holds as long as decryption never fails, since a failure depends on e
(eprint 2024/116, 2024/127). A coefficient fails when its noise reaches 1/2 in units of the plaintext. No response is
released in which a coefficient came as near to that as `EXACT_MARGIN`, which also catches a server whose answers are
visibly not made honestly; but refusals can be seen as well, and depend on e. So what counts is that honest responses do
not come there: `encoding.deviation.log2_reached` bounds the chance for a response by its layout, for any catalogue, and
a limit of T releases is accepted when T times it is below 2^-30. All layouts together have room for `EXACT_RELEASES`
(tests go through them: at most 2^-42 for one response), most for far more; a released score is wrong only if a noise
jumped over the gap between `EXACT_MARGIN` and 1 - `EXACT_MARGIN`, which is rarer still.

Approximate sets (CKKS). To a score x = m + e, |e| <= B (`Parameters.score_error`), Gaussian noise of deviation sigma
is added, then the sum is rounded to a grid of step >= 4 sigma. Released are the k best of the rounded values, ties in
the order of the catalogue: a function of the rounded values of all items, which therefore is all that leaks.

    sigma = B sqrt(T R)          T releases under one key at most, R results (blocks) in a response

    Noise on all slots is noise on all coefficients: the transform is orthogonal up to a factor.

    Rounding alone would be no guard: items near a boundary of the grid tell by their side of it about e. With the
    noise, which side they fall to is mostly chance; far from boundaries the answer is the same with and without e.
    What all T releases together tell about the errors, even if every score were published unrounded, is at most sum
    over scores of (E[e^2] / 2 sigma^2) <= N / 98 nats, as the deviation of e is below B / 7 (parameters.py): 60 bits
    at N = 4096, of a secret key of 6,492 bits. In the language of hints: e is linear in the errors of query and keys
    with coefficients that the server knows. Ring-LWE with T R such hints under noise sigma is as hard as without
    hints and errors of deviation 1 / sqrt(2 (1 + 1/49)) of the original (D. Kim, D. Lee, J. Seo, Y. Song, "Toward
    practical lattice-based proof of knowledge from Hint-MLWE", Crypto 2023, eprint 2023/623): less than one bit. That
    proof is for Gaussian secrets; here, with SEAL's ternary secret and clipped errors, it is an argument and not a
    proof.

    It is NOT statistical IND-CPA-D security. That takes sigma = sqrt(12 T) 2^(s/2) B with s >= 30 (eprint 2022/816;
    OpenFHE, docs/static_docs/Security.md), `statistical_sigma` below: above 2 for scores of at most 1 at every
    approximate set here, above 17 at `fast`. `proven=True` refuses those sets for that reason; take `exact` where
    that proof is wanted.

Not covered, by either: a server that answers with ciphertexts of its own choosing (no scheme without verifiable
computation survives decryptions of those at full precision; k and the grid bound what one release can tell), and what
the scores themselves say about the user (`veil.privacy.selection` has a differentially private choice of an item).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from he_inference.client.keys import Ring
from he_inference.client.scores import Origin, Scores
from he_inference.encoding.deviation import log2_reached
from he_inference.encoding.slots import Bfv
from he_inference.parameters import Parameters
from veil.errors import CiphertextError, InputError, PolicyError
from veil.privacy.noise import rounded_gaussian, system_source

RELEASES = 32
"""T: releases of approximate scores under one key, unless said otherwise."""
EXACT_RELEASES = 1 << 12
"""The same for exact scores; so many are within the bound in every layout."""
EXACT_MARGIN = 15 / 32
"""In the same units; honest responses would reach a lower one too often, and be refused (see the module)."""
_MOST_RELEASES = 1 << 16
_STATISTICAL_BITS = 30
# The noise is drawn in units of sigma / 2^20.
_SIGMA_UNITS = 1 << 20
# Noise beyond this many deviations has probability 2^-28 for each score.
_TAIL = 6.0
# Layouts whose scores are linear in what was decrypted; those of a history are not.
_KINDS = ("session", "keyless")
# On scores in [-1, 1] a coarser grid would tell the best items from the rest no more.
_COARSEST_STEP = 0.125


@dataclass(frozen=True, slots=True)
class ReleasedScores:
    """Scores that may be handed to anyone.

    numbers: of the items, best first. scores: multiples of `step`. bound: of |released - plaintext score|; for
    "flooded" it fails with probability 2^-28 for each score. method: "exact" (no noise at all) or "flooded".
    releases_left: under the present key.
    """

    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    method: Literal["exact", "flooded"]
    step: float
    sigma: float
    bound: float
    releases_left: int


def release(
    scores: Scores,
    k: int,
    ring: Ring,
    *,
    limit: int | None = None,
    exclude: Sequence[int] = (),
    proven: bool = False,
) -> ReleasedScores:
    """The k best scores, made fit to be shown to anyone, the server included, and counted against `limit`.

    limit: T, the same for all releases under one key; a larger one means more noise. exclude: numbers of items that
    are left out; which ones are left out can be seen. Raises `InputError` for scores that are not
    what a client returned, `StateError` when the limit is reached or the key was rotated, `PolicyError` when the limit
    is more than the scores' noise, or the exact set's distance from wrong ones, has room for.
    """
    origin = getattr(scores, "origin", None)
    if not isinstance(scores, Scores) or origin is None:
        raise InputError(
            "got scores that were changed or did not come from this client, expected what score() returned",
            hint="release first, compute afterwards",
        )
    if k < 1:
        raise InputError(f"got k = {k}, expected at least 1")
    parameters = origin.offer.layout.parameters
    if origin.offer.layout.kind not in _KINDS:
        raise PolicyError(
            f"got scores of a {origin.offer.layout.kind} offer, which no argument covers, expected those of a vector",
            hint="ask for what is to be released by a session or keyless offer",
        )
    exact = parameters.scheme == "bfv"
    most = limit if limit is not None else EXACT_RELEASES if exact else RELEASES
    if not 1 <= most <= _MOST_RELEASES:
        raise InputError(f"got a limit of {most} releases, expected 1 to {_MOST_RELEASES}")
    left_out = np.asarray(exclude, np.int64).reshape(-1)
    if len(left_out) and not 0 <= int(left_out.min()) <= int(left_out.max()) < len(scores):
        raise InputError(f"got an item number outside 0 to {len(scores) - 1} to exclude")
    if proven and not exact:
        raise PolicyError(
            f"got scores under {parameters.name}: a proven release needs noise of deviation"
            f" {statistical_sigma(parameters, most):.0f} on scores of at most 1, expected an exact set",
            hint="ask a server that offers `exact`, or release without proven=True",
        )
    step, sigma = _exact_grid(origin, most) if exact else _noisy_grid(parameters, origin.offer.layout.blocks, most)
    # Counted before anything is computed: a crash in between costs a release, never hides one.
    count = ring.count_release(parameters, origin.key_id, most)
    values = _rounded(origin.unit_scores, step, sigma)
    kept = np.ones(len(values), bool)
    kept[left_out] = False
    kept[list(origin.offer.removed)] = False
    order = np.argsort(-values, kind="stable")
    best = order[kept[order]][:k]
    noise_bound = 0.0 if exact else step / 2 + _TAIL * sigma
    return ReleasedScores(
        numbers=tuple(int(number) for number in best),
        scores=tuple(float(values[number]) * step * origin.scale for number in best),
        method="exact" if exact else "flooded",
        step=step * origin.scale,
        sigma=sigma * origin.scale,
        bound=(noise_bound + origin.unit_error) * origin.scale,
        releases_left=most - count,
    )


def statistical_sigma(parameters: Parameters, releases: int, bits: int = _STATISTICAL_BITS) -> float:
    """sqrt(12 releases) 2^(bits / 2) B: noise on unit scores that hides the error statistically (see the module)."""
    return math.sqrt(12 * releases) * math.pow(2.0, bits / 2) * parameters.score_error


def flooding_sigma(parameters: Parameters, results: int, releases: int) -> float:
    """B sqrt(releases results): the noise on unit scores (see the module)."""
    return parameters.score_error * math.sqrt(releases * results)


def _noisy_grid(parameters: Parameters, results: int, releases: int) -> tuple[float, float]:
    sigma = flooding_sigma(parameters, results, releases)
    step = 2.0 ** math.ceil(math.log2(4 * sigma))
    if step > _COARSEST_STEP:
        raise PolicyError(
            f"got {releases} releases of {results} results each, which need a grid of step {step:g} on scores of at"
            f" most 1, expected {_COARSEST_STEP:g} or finer",
            hint="lower the limit and rotate keys more often, or take an exact set",
        )
    return step, sigma


def _exact_grid(origin: Origin, releases: int) -> tuple[float, float]:
    bits = -log2_reached(origin.offer.layout, EXACT_MARGIN) - math.log2(releases)
    if bits < _STATISTICAL_BITS:
        raise PolicyError(
            f"got {releases} releases of {origin.offer.layout.blocks} results each, one of which could come close to a"
            f" wrong value with a chance of 2^{-bits:.0f}, expected 2^-{_STATISTICAL_BITS} or less",
            hint="lower the limit and rotate keys more often",
        )
    if origin.margin > EXACT_MARGIN:
        raise CiphertextError(
            "got scores that decrypted close to a wrong value, expected ones far from it",
            hint="ask again; if it happens twice, do not trust this server",
        )
    return 1.0 / Bfv.LEVELS**2, 0.0


def _rounded(values: NDArray[np.float64], step: float, sigma: float) -> NDArray[np.int64]:
    """int64[items]: multiples of `step`, after noise of deviation `sigma`."""
    noisy = values
    if sigma:
        noise = rounded_gaussian(len(values), _SIGMA_UNITS, system_source())
        noisy = values + noise * (sigma / _SIGMA_UNITS)
    return np.rint(noisy / step).astype(np.int64)
