"""From an operator's job.toml to a job on predictions, and what it will take at each party.

Guarantee: what the planner reads of a published model is public to the consortium: its manifest and the job text that
the manifest lists. Signatures are checked by the parties, each on its own copy. Bytes and rounds of a forecast come
from the dry run of the very program (`veil.trainers.columns.forecast` says how seconds are estimated).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from veil.align.traffic import align_points, align_traffic
from veil.errors import ArtifactError, ConfigError
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import DEFAULT_OUTPUT_BITS, LEAST_OUTPUT_BITS, MOST_OUTPUT_BITS, PredictionsTrainer
from veil.jobs.request import JobRequest
from veil.jobs.spec import JobSpec, Release, describe
from veil.mpc.engine.plan import Plan
from veil.recsys.signed import MAX_MANIFEST_BYTES, check_job, parse_manifest, read
from veil.trainers.columns.forecast import Counted, PartyForecast, PhaseForecast, aligned
from veil.trainers.columns.prediction import PredictionTerms, Public, dry_run
from veil.trainers.columns.speeds import (
    EXPANDED_BYTE_S,
    HARMONIC_S,
    RECEIVED_BYTE_S,
    SENT_BYTE_S,
    START_S,
    Link,
    Speeds,
    calls_s,
)

OVERRIDES: Final = ("bits",)
_AGREE_BYTES: Final = 32 + 16 + 8  # a statement's digest and its header
_KEYS_BYTES: Final = 64 + 16 + 8


def plan_predictions(request: JobRequest) -> tuple[PredictionsTrainer, tuple[Release, ...]]:
    """The trainer, and no release. Raises `ConfigError` when the request does not fit the model."""
    section = request.trainer
    if section.published is None or section.alignment is None or section.recipient is None:
        raise ConfigError("got trainer predictions without published, recipient or alignment, expected all three")
    unknown = sorted(set(section.overrides) - set(OVERRIDES))
    if unknown:
        raise ConfigError(f"got unknown settings {', '.join(unknown)}, expected some of {', '.join(OVERRIDES)}")
    bits = section.overrides.get("bits", float(DEFAULT_OUTPUT_BITS))
    if not float(bits).is_integer() or not LEAST_OUTPUT_BITS <= bits <= MOST_OUTPUT_BITS:
        expected = f"a whole number from {LEAST_OUTPUT_BITS} to {MOST_OUTPUT_BITS}"
        raise ConfigError(f"got bits {bits:g}, expected {expected}")
    try:
        raw = read(section.published, "manifest.json", MAX_MANIFEST_BYTES)
        trained = check_job(section.published, parse_manifest(raw))
    except ArtifactError as error:
        raise ConfigError(f"published: {error.message}", hint="a party's state/models/JOB, or a copy of it") from None
    if not isinstance(trained.trainer, ColumnsTrainer):
        raise ConfigError(f"got a model of trainer {trained.trainer.kind}, expected one on columns of several parties")
    if trained.parties != request.parties:
        raise ConfigError(
            f"got parties {', '.join(request.parties)}, expected those of the model in order:"
            f" {', '.join(trained.parties)}"
        )
    opening = {"name": "scores", "shape": [section.alignment.result], "recipient": section.recipient}
    try:
        trainer = PredictionsTrainer.model_validate(
            {
                "model": f"sha256:{hashlib.sha256(raw).hexdigest()}",
                "hidden": trained.trainer.hidden,
                "alignment": section.alignment,
                "triples": section.triples,
                "bits": int(bits),
                "openings": [opening],
            }
        )
    except ValidationError as error:
        raise ConfigError(
            f"[trainer]: {describe(error)}", hint="deploy/job-predictions.toml explains every key"
        ) from None
    return trainer, ()


def forecast_predictions(spec: JobSpec, link: Link, speeds: Speeds) -> list[PartyForecast]:
    """For every party in rank order, phases as `party.worker.predictions` measures them. Raises `ConfigError`."""
    terms = PredictionTerms.of(spec)
    parties, peers = range(len(spec.parties)), len(spec.parties) - 1
    plans = [dry_run(terms, Public.nothing(terms), rank=rank) for rank in parties]
    points, traffic = align_points(terms.alignment), align_traffic(terms.alignment)
    dealt = terms.trainer.triples == "dealer"
    corrections = max(one.correction_bytes for one in plans) if dealt else 0
    found = []
    for rank, party in enumerate(spec.parties):
        counted = {"start": Counted(0, 0, 0), "align": aligned(traffic[rank]), **_shared(terms, plans, rank)}
        expanded_s = _arithmetic_s(plans[rank])
        arithmetic = {
            "start": (START_S, START_S * len(parties)),
            "align": (points.longest * speeds.point_s, points.all * speeds.point_s),
            # the dealer expands what the parties expand
            "predict": (expanded_s, expanded_s * (len(parties) + (1 if dealt else 0))),
        }
        phases = []
        for phase, one in counted.items():
            received = one.received_bytes or 0
            longest_s, all_s = arithmetic.get(phase, (0.0, 0.0))
            passed_s = calls_s(one.exchanges, peers) + SENT_BYTE_S * one.sent_bytes + RECEIVED_BYTE_S * received
            if phase == "offline":  # a ciphertext is made at one end and used at the other
                passed_s += (one.sent_bytes + received) / 2 * speeds.ciphertext_byte_s
            work_s = speeds.elapsed(longest_s + passed_s, all_s + passed_s * len(parties))
            seconds = link.seconds(one.exchanges, max(one.sent_bytes, received)) + work_s
            if phase == "predict" and corrections:
                seconds = max(seconds, link.seconds(1, corrections))
            phases.append(PhaseForecast(phase, one.rounds, one.sent_bytes, received, seconds))
        found.append(PartyForecast(party, tuple(phases), corrections if rank == 0 else 0))
    return found


def _shared(terms: PredictionTerms, plans: Sequence[Plan], rank: int) -> dict[str, Counted]:
    """The phases on shared numbers at one party."""
    peers, recipient = len(plans) - 1, terms.recipient
    scores_bytes = 8 * terms.slots + 16 + 8

    def sums_bytes(at: int) -> int:  # what goes out before the scores do, to each of the others alike
        return plans[at].sent_bytes - (0 if at == recipient else scores_bytes)

    came = sum(sums_bytes(at) for at in range(len(plans)) if at != rank) // peers
    agreed = peers * _AGREE_BYTES
    out, back = (0, peers * scores_bytes) if rank == recipient else (scores_bytes, 0)
    phases = {
        # keys for shares of zero; the digest of the table of sines
        "prepare": Counted(2, peers * _KEYS_BYTES + agreed, peers * _KEYS_BYTES + agreed),
        "predict": Counted(plans[rank].rounds - 1, sums_bytes(rank), came),
        "reveal": Counted(2, agreed + out, agreed + back),
    }
    offline = _offline(terms, plans[rank], rank)
    return phases if offline is None else {"offline": offline, **phases}


def _arithmetic_s(program: Plan) -> float:
    """Waves are what takes time: each dependent number is expanded, looked up and multiplied."""
    return program.correction_bytes / 8 * HARMONIC_S + program.correction_bytes * EXPANDED_BYTE_S


def _offline(terms: PredictionTerms, program: Plan, rank: int) -> Counted | None:
    if terms.trainer.triples != "he" or not program.items:
        return None
    from veil.trainers.columns.offline import count_offline

    counted = count_offline(program.items, rank, len(terms.parties))
    return Counted(counted.rounds, counted.sent_bytes, counted.received_bytes)
