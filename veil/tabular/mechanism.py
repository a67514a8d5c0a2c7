"""What one user can do to a summed gradient, whatever the hidden weights are.

Guarantee: `gradient_sensitivity` bounds, exactly and in integers, the L2 norm of what one user adds to the summed
gradient of each model below, for any weights, hidden or not: no clipping inside the computation, none of the weights.
`veil.tabular.plan` accounts for it as if the noised gradient of every step were opened. The weights stay shared until
the end, so what opens (the last weights, a function of these gradients and public numbers) is post-processing; hiding
the steps between them only helps, and no credit is taken for it.

What the computation on shares must keep for that to be true: (1) the link is bounded on every ring element, also where
the logit left the range for which it was made (a Fourier series is, a polynomial is not); (2) the residual of a slot
depends on that slot and the weights alone, rounding included; (3) residual times row is summed in integers, and noise
is added at that resolution, before anything is truncated; (4) nothing opens but what is a function of such noised sums.

Per-user gradients (one slot, features x with ||x||_2 <= 1, residual r = weight * (p - y), |r| <= R):

    linear        u = w.x + b                         dw = r x                                  norm <= R
    perceptron    u = s/sqrt(H) sum_h e_h tanh(w_h.x + b_h), e_h = +-1 fixed and public, b_h fixed and public
                  dw_h = r s/sqrt(H) e_h tanh'(.) x    norm^2 = r^2 s^2 mean_h(tanh'^2) ||x||^2 <= R^2 s^2
    two towers    u = w.x + s/sqrt(K) sum_k e_k tanh(a_k.x_A) tanh(b_k.x_B)
                  da_k = r s/sqrt(K) e_k tanh(b_k.x_B) tanh'(a_k.x_A) x_A, db_k alike
                  norm^2 <= R^2 (||x||^2 + s^2 (||x_A||^2 + ||x_B||^2)) <= R^2 (1 + s^2)

In a perceptron or towers with unbounded activations and trained outputs the norm would depend on the weights, which
nobody can see or clip in public. Fixing the output signs (the setting of Du, Zhai, Poczos and Singh 2019, "Gradient
Descent Provably Optimizes Over-parameterized Neural Networks") and bounding the activations makes it public.
Full-batch steps: every user takes part in every step, so mu^2 adds up (`veil.privacy.gaussian`). Gradient perturbation:
Song, Chaudhuri and Sarwate 2013; Bassily, Smith and Thakurta 2014, "Private Empirical Risk Minimization".
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final, Literal

from veil.errors import ConfigError
from veil.privacy.mechanism import GRID_LIMIT
from veil.tabular.schema import TabularSchema

RESIDUAL_BITS: Final = 14

Family = Literal["linear", "perceptron", "towers"]


def residual_bound(schema: TabularSchema, *, link_error: float = 2.0**-7, bits: int = RESIDUAL_BITS) -> int:
    """Largest |weight * (p - y)| in steps of 2^-bits, p the computed link, y the label.

    link_error: how far the computed sigmoid may leave [0, 1], on ANY input: a Fourier series is bounded everywhere, a
    polynomial is not. The steps of one truncated product are added. Raises `ConfigError` when it is not in [0, 1].
    """
    if not 0 <= link_error <= 1:
        raise ConfigError(f"got a link error of {link_error}, expected 0 to 1")
    largest = Fraction(max(schema.label.positive_weight, schema.label.negative_weight))
    # Sensitivity: p in [-e, 1 + e], y in {0, 1}, so |p - y| <= 1 + e; 2 units for the rounding of p, which the weight
    # multiplies too; 2 more for the truncated product.
    return math.ceil(largest * ((1 + Fraction(link_error)) * (1 << bits) + 2)) + 2


def gradient_sensitivity(
    schema: TabularSchema, family: Family = "linear", *, slope: float = 1.0, residual_steps: int | None = None
) -> int:
    """L2 sensitivity of the summed gradient in steps of 2^-(residual bits + feature bits); add or remove one user.

    slope: s of the module's docstring, a public constant. Raises `ConfigError` from 2^52 on.
    """
    residual = residual_bound(schema) if residual_steps is None else residual_steps
    # Sensitivity, linear: the user's slot adds r x with integer r and x, norm |r| ||x|| <= residual * row_bound. In the
    # other families a summand is a product of r, x and at most three more factors of magnitude at most 1 (activation,
    # slope of an activation, output sign), each computed to within 2^-10: (1 + 2^-10)^3 < 1 + 2^-8.
    factor = {"linear": Fraction(1), "perceptron": Fraction(slope), "towers": _root(1 + Fraction(slope) ** 2)}[family]
    if family != "linear":
        factor *= 1 + Fraction(1, 256)
    steps = math.ceil(residual * schema.row_bound * factor)
    if not 1 <= steps < GRID_LIMIT:
        raise ConfigError(f"got a gradient of up to {steps} grid steps, expected 1 to 2^52 - 1", hint="fewer bits")
    return steps


def _root(value: Fraction) -> Fraction:
    """A rational at least sqrt(value), within 2^-40."""
    return Fraction(math.isqrt(math.ceil(value * 4**40)) + 1, 2**40)
