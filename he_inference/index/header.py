"""The header of an index file: canonical JSON, of which every field is checked.

Guarantee: `parsed` returns only what this version of the program would have written for the layout that it names: the
same parameter set, the same shape and order of the numbers, the same rotations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from he_inference.index.geometry import block_shape, norm_limit, transform_digest
from he_inference.layouts.catalogue import layout_of, packing_of
from he_inference.layouts.seam import Layout
from veil.errors import ArtifactError

MAX_GENERATION: Final = 2**53
REBUILD: Final = "build it again: veil index build --help"


@dataclass(frozen=True)
class Header:
    """What an index holds. Digests are of 32 bytes.

    item_norm: what item vectors were divided by, so that rows are short enough. largest_norm: no row is longer than
    this. generation: rises by one with every change of the file.
    """

    layout: Layout
    item_norm: float
    largest_norm: float
    model_digest: bytes
    item_ids_digest: bytes
    generation: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.item_norm) and 1e-30 < self.item_norm < 1e30):
            raise ArtifactError(f"got an item norm of {self.item_norm}, expected a positive number")
        if not 0.0 <= self.largest_norm <= norm_limit(self.layout):
            raise ArtifactError(f"got rows of norm {self.largest_norm}, expected at most {norm_limit(self.layout)}")
        if len(self.model_digest) != 32 or len(self.item_ids_digest) != 32:
            raise ArtifactError("got a digest that is not 32 bytes long, expected SHA-256")
        if not 1 <= self.generation <= MAX_GENERATION:
            raise ArtifactError(f"got generation {self.generation}, expected 1 to 2^53")


def parsed(text: bytes, name: str) -> Header:
    """The header of index `name`; raises `ArtifactError`, and `ConfigError` for a layout that is not known here."""
    try:
        document = json.loads(text.decode("ascii"), parse_constant=_refused)
        canonical = _canonical(document) == text
    except (ValueError, RecursionError):
        canonical = False
    if not canonical or not _of_types(document, _TYPES):
        raise ArtifactError(f"got index {name} with a malformed header, expected canonical JSON", hint=REBUILD)
    layout = layout_of(
        document["layout"], document["parameters"], document["items"], document["dimensions"], document["packing"]
    )
    if document["parameters_digest"] != layout.parameters.digest.hex():
        raise ArtifactError(
            f"got index {name} for another version of parameter set {layout.parameters.name}, expected this one's",
            hint=REBUILD,
        )
    if (document["rotations"], document["group_step"]) != (layout.rotations, layout.group_step):
        raise ArtifactError(
            f"got index {name} for {document['rotations']} rotations, expected {layout.rotations} for its layout",
            hint=REBUILD,
        )
    if document["transform_digest"] != transform_digest(layout).hex():
        raise ArtifactError(
            f"got index {name} of a program with another order of coefficients, expected this one's", hint=REBUILD
        )
    if document["block_shape"] != list(block_shape(layout)) or document["blocks"] != layout.blocks:
        raise ArtifactError(f"got index {name} with blocks of another shape, expected its layout's", hint=REBUILD)
    try:
        digests = [bytes.fromhex(document[key]) for key in ("model_digest", "item_ids_digest")]
    except ValueError:
        raise ArtifactError(f"got index {name} with a malformed digest, expected hexadecimal") from None
    return Header(
        layout, document["item_norm"], document["largest_norm"], digests[0], digests[1], document["generation"]
    )


def written(header: Header) -> bytes:
    """The header as it stands in the file."""
    layout = header.layout
    document = {
        "block_shape": list(block_shape(layout)),
        "blocks": layout.blocks,
        "dimensions": layout.dimensions,
        "generation": header.generation,
        "group_step": layout.group_step,
        "item_ids_digest": header.item_ids_digest.hex(),
        "item_norm": float(header.item_norm),
        "items": layout.items,
        "largest_norm": float(header.largest_norm),
        "layout": layout.kind,
        "model_digest": header.model_digest.hex(),
        "packing": packing_of(layout),
        "parameters": layout.parameters.name,
        "parameters_digest": layout.parameters.digest.hex(),
        "rotations": layout.rotations,
        "transform_digest": transform_digest(layout).hex(),
    }
    return _canonical(document)


_TYPES: Final[Mapping[str, type]] = {
    "block_shape": list,
    "blocks": int,
    "dimensions": int,
    "generation": int,
    "group_step": int,
    "item_ids_digest": str,
    "item_norm": float,
    "items": int,
    "largest_norm": float,
    "layout": str,
    "model_digest": str,
    "packing": int,
    "parameters": str,
    "parameters_digest": str,
    "rotations": int,
    "transform_digest": str,
}


def _of_types(document: object, types: Mapping[str, type]) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(document, dict)
        and set(document) == set(types)
        and all(type(document[key]) is kind for key, kind in types.items())
    )


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _refused(constant: str) -> float:
    raise ValueError(f"got {constant}, expected a finite number")
