"""What parties report of a job and what the coordinator keeps: progress, outcome, failure.

Guarantee: a report that exists is within bounds: names are names, numbers fit 63 bits, sentences are one line of at
most 1,024 printable characters. Nothing in a report depends on a party's rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from veil.errors import BY_CODE, PeerError, VeilError, WireError
from veil.jobs.spec import JobSpec

SENTENCE_CHARACTERS = 1024
MOST_STEPS = 10_000
MOST_CULPRITS = 32
MANIFEST_DIGEST_BYTES = 32
# Steps that every job has, around one step for each release: read the data, connect to the peers; write the model.
BEFORE = ("load", "mesh")
# Where columns of several parties are joined: find the common users; open the weights.
ALIGN, REVEAL = "align", "reveal"
# Where new rows are scored between the two.
PREDICT = "predict"
SCORING = (ALIGN, PREDICT, REVEAL)
AFTER = ("publish",)

_LARGEST = 2**63 - 1
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,47}")
_DECIMAL = re.compile(r"[0-9]{1,24}(\.[0-9]{1,24})?(e[+-]?[0-9]{1,3})?")


def steps(spec: JobSpec) -> tuple[str, ...]:
    """Names of the steps of a job, in order: "load", "mesh", one per release, "publish".

    Trainer "columns": "align" before its releases, "reveal" after them; "predictions": "align", "predict", "reveal";
    "side": "align" before its releases.
    """
    releases = [release.name for release in spec.releases]
    if spec.trainer.kind == "columns":
        releases = [ALIGN, *releases, REVEAL]
    elif spec.trainer.kind == "predictions":
        releases = [*SCORING]
    elif spec.trainer.kind == "side":
        releases = [ALIGN, *releases]
    return (*BEFORE, *releases, *AFTER)


def sentence(text: str) -> str:
    """One printable line of at most 1,024 characters: what came from elsewhere may not move a terminal's cursor."""
    # cut before the walk, so that a huge text costs nothing
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * SENTENCE_CHARACTERS])
    line = re.sub(r" {2,}", " ", line).strip()
    return line if len(line) <= SENTENCE_CHARACTERS else line[: SENTENCE_CHARACTERS - 1] + "…"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one party is: `done` of `total` steps are finished, `step` is the one at work or just finished."""

    step: str
    done: int
    total: int
    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    elapsed_ms: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.step):
            raise WireError(f"got step {self.step[:48]!r}, expected a name")
        if not 0 <= self.done <= self.total <= MOST_STEPS:
            raise WireError(f"got {self.done} of {self.total} steps, expected 0 <= done <= total <= {MOST_STEPS}")
        for name in ("bytes_sent", "bytes_received", "messages_sent", "elapsed_ms"):
            _check_count(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A published model: SHA-256 of its manifest, and the epsilon (millionths, rounded up) at `delta` (decimal)."""

    manifest_digest: bytes
    epsilon_micro: int
    delta: str

    def __post_init__(self) -> None:
        if len(self.manifest_digest) != MANIFEST_DIGEST_BYTES:
            raise WireError(f"got a manifest digest of {len(self.manifest_digest)} bytes, expected 32")
        _check_count("epsilon_micro", self.epsilon_micro)
        if not _DECIMAL.fullmatch(self.delta):
            raise WireError(f"got delta {self.delta[:48]!r}, expected a decimal number")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended badly. `culprits` are the names of those at fault, as far as known."""

    code: str
    sentence: str
    culprits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise WireError(f"got failure code {self.code[:48]!r}, expected capitals and '_'")
        if len(self.culprits) > MOST_CULPRITS or not all(_NAME.fullmatch(name) for name in self.culprits):
            raise WireError(f"got {len(self.culprits)} culprits, expected at most {MOST_CULPRITS} names")
        object.__setattr__(self, "culprits", tuple(dict.fromkeys(self.culprits)))
        object.__setattr__(self, "sentence", sentence(self.sentence))

    @classmethod
    def of(cls, error: VeilError, *, otherwise: Sequence[str] = ()) -> Failure:
        """The failure that an error stands for; `otherwise` are the culprits when the error names none itself."""
        culprits = error.culprits if isinstance(error, PeerError) and error.culprits else tuple(otherwise)
        return cls(error.code, str(error), culprits[:MOST_CULPRITS])

    def error(self, *, hint: str | None = None) -> VeilError:
        """The error of this code, with sentence and culprits; a `VeilError` when the code is not known here."""
        kind = BY_CODE.get(self.code, VeilError)
        if issubclass(kind, PeerError):
            return kind(self.sentence, culprits=self.culprits, hint=hint)
        return kind(self.sentence, hint=hint)


def _check_count(name: str, value: int) -> None:
    if not 0 <= value <= _LARGEST:
        raise WireError(f"got {name} {value}, expected 0 to 2^63 - 1")
