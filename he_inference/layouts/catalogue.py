"""All layouts by name: how client, server and index files get from a few fields to the same layout.

Guarantee: a layout is a function of kind, parameter set, items, dimensions and packing; what no table here holds raises
`ConfigError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from he_inference import messages
from he_inference import parameters as sets
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.history_parts import FoldInLayout, OutputLayout
from he_inference.layouts.keyless import MOST_RESULTS, PACKINGS, KeylessLayout
from he_inference.layouts.seam import Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import Parameters
from veil.errors import ConfigError

# A query is one message; the rest of 4 MiB is room for its envelope.
MAX_QUERY_BYTES = 3 * 1024 * 1024
_MOST_CIPHERTEXTS = 256


def _session(parameters: Parameters, items: int, dimensions: int, packing: int) -> Layout:
    if packing:
        raise ConfigError(f"got packing {packing} for a session layout, expected 0")
    return SessionLayout(parameters, items, dimensions)


# kind -> layout of (parameters, items, dimensions, packing)
_KINDS: Mapping[str, Callable[[Parameters, int, int, int], Layout]] = {
    "session": _session,
    "keyless": KeylessLayout,
    "history": HistoryLayout,
    # The two parts of its index, each a file.
    "history-fold-in": FoldInLayout,
    "history-scores": OutputLayout,
}
# What a server offers.
KINDS = ("session", "keyless", "history")


def layout_of(kind: str, parameters: Parameters | str, items: int, dimensions: int, packing: int = 0) -> Layout:
    """The layout of that kind; packing 0 where the kind has none. Raises `ConfigError`."""
    try:
        make = _KINDS[kind]
    except KeyError:
        raise ConfigError(
            f"got layout {kind[:32]!r}, expected one of {', '.join(KINDS)}",
            hint="update both sides when one of them knows a newer one",
        ) from None
    chosen = sets.named(parameters) if isinstance(parameters, str) else parameters
    return make(chosen, items, dimensions, packing)


def packing_of(layout: Layout) -> int:
    """The packing of a layout, as `layout_of` takes it; 0 where its kind has none."""
    return int(getattr(layout, "packing", 0))


def usual_kind(parameters: Parameters) -> str:
    """What a parameter set is for: "history", or "keyless" for one without rotations, or "session"."""
    if parameters == sets.HISTORY:
        return "history"
    return "session" if parameters.special_bits else "keyless"


def best_packing(kind: str, parameters: Parameters, items: int, dimensions: int) -> int:
    """The packing with the fewest bytes on the wire, both ways; 0 for a kind that has none. Raises `ConfigError`."""
    if kind != "keyless":
        return 0
    choices = []
    for packing in PACKINGS:
        if -(-dimensions // packing) > _MOST_CIPHERTEXTS or items * packing > MOST_RESULTS * parameters.degree:
            continue
        layout = KeylessLayout(parameters, items, dimensions, packing)
        up, down = query_bytes(layout), layout.blocks * result_bytes(layout)
        if up <= MAX_QUERY_BYTES:
            choices.append((up + down, packing))
    if not choices:
        raise ConfigError(f"got {dimensions} dimensions, expected fewer for a keyless layout of {parameters.name}")
    return min(choices)[1]


def query_bytes(layout: Layout) -> int:
    """Bytes of a query, exactly."""
    return messages.query_bytes(layout.parameters, layout.query_ciphertexts)


def key_bytes(layout: Layout) -> int:
    """Bytes of evaluation keys, exactly; 0 where there are none."""
    elements = len(layout.galois_elements)
    return messages.key_bytes(layout.parameters, elements) if elements else 0


def result_bytes(layout: Layout) -> int:
    """Bytes of one result, exactly."""
    return messages.result_bytes(layout.parameters, layout.used_coefficients)
