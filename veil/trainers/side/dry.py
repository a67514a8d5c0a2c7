"""A side job's outer products without data: what they ask of the dealer and send, and whether their numbers fit."""

from __future__ import annotations

from collections.abc import Sequence

from veil.jobs.spec import Noise, Release
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import Plan, plan
from veil.mpc.engine.values import Value
from veil.privacy.sources import draws
from veil.trainers.columns.outer import OwnRows
from veil.trainers.columns.terms import noise_limit_bits
from veil.trainers.side.terms import SideTerms, release_name


def outer_releases(terms: SideTerms, releases: Sequence[Release]) -> list[Release]:
    """Those of the outer products, in the order of side parties."""
    by_name = {release.name: release for release in releases}
    return [by_name[release_name("outer", one.party)] for one in terms.schema.parties]


def products(terms: SideTerms, releases: Sequence[Release], engine: Engine, own: OwnRows | None) -> list[Value]:
    """The shared outer products, as `releases` of `outer_releases` will open them but for the noise."""
    values = terms.program.run(engine, own)
    return [value.reshape(*release.shape) for value, release in zip(values, releases, strict=True)]


def dry_run(terms: SideTerms, releases: Sequence[Release], noise: Noise, *, rank: int) -> Plan:
    """The plan of the outer products and of their openings, at the party of `rank`.

    Raises `ConfigError` when a number may leave its 63 bits.
    """
    outers = outer_releases(terms, releases)
    on_total = draws(noise, len(terms.alignment.sizes))

    def everything(engine: Engine) -> None:
        for release, value in zip(outers, products(terms, outers, engine, None), strict=True):
            limit_bits = noise_limit_bits(release, on_total)
            if noise.source == "dealer":
                drawn = engine.noise(release.name, release.shape, bits=value.bits, limit_bits=limit_bits)
            else:
                drawn = Value(value.share, value.bits, limit_bits)
            engine.combine(value + drawn)

    return plan(everything, rank, len(terms.alignment.sizes))
