"""A columns job without its data: what its descent asks of the dealer, sends and computes, and whether numbers fit."""

from __future__ import annotations

from collections.abc import Sequence

from veil.jobs.spec import Noise, Release
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import check_without_dealer
from veil.mpc.engine.plan import Plan, plan
from veil.mpc.engine.values import Value
from veil.privacy.sources import draws
from veil.trainers.columns.terms import ColumnsTerms, noise_limit_bits, step_name


def dry_run(terms: ColumnsTerms, releases: Sequence[Release], noise: Noise, *, rank: int) -> Plan:
    """The plan of the descent and of the opening of its weights, at the party of `rank`.

    Raises `ConfigError` when a number may leave its 62 bits, or when the job has no dealer and takes one.
    """
    parties = len(terms.schema.parties)
    by_name = {release.name: release for release in releases}
    on_total = draws(noise, parties)

    def everything(engine: Engine) -> None:
        def add(step: int, gradient: Value) -> Value:
            release = by_name[step_name(step)]
            limit_bits = noise_limit_bits(release, on_total)
            if noise.source == "dealer":
                drawn = engine.noise(release.name, release.shape, bits=gradient.bits, limit_bits=limit_bits)
            else:
                drawn = Value(gradient.share.reshape(release.shape), gradient.bits, limit_bits)
            return gradient + drawn.reshape(*gradient.shape)

        engine.combine(terms.program(add).run(engine, None))

    planned = plan(everything, rank, parties)
    if terms.trainer.triples == "he":
        check_without_dealer(planned.items, parties)
    return planned
