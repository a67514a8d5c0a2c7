"""What a party checks before it signs a job: pure functions of the job text and of what the party holds.

A party believes nothing that it can recompute: the digest, the releases that the trainer implies, their sensitivity,
the epsilon, and what its own ledger still allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from party.config import Approval, Users
from party.rows.columns import HeldColumns
from party.rows.identifiers import HeldIdentifiers
from party.rows.prediction_rows import HeldPredictions
from veil import __version__
from veil.errors import ConfigError, PolicyError, StateError
from veil.identity.names import Identity
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec, QueryTrainer, digest, parse
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.privacy.mechanism import check_headroom
from veil.privacy.sources import colluding
from veil.queries.question import from_text
from veil.recsys.catalogue import Catalogue
from veil.trainers.registry import check_job

# No deployment has more users than this in all; the ring must hold their sum plus the noise.
_MOST_USERS = 100_000_000


@dataclass(frozen=True)
class Reviewed:
    """A job that this party would sign: its text parsed, its digest and its epsilon recomputed here."""

    spec: JobSpec
    digest: bytes
    epsilon: float


def review(
    text: str,
    claimed_digest: bytes,
    *,
    me: Identity,
    dealer: str,
    catalogue: Catalogue | None,
    ledger: Ledger,
    rules: Approval,
    modules: Mapping[str, Path] | None = None,
    users: Users | None = None,
    columns: HeldColumns | None = None,
    identifiers: HeldIdentifiers | None = None,
    predictions: HeldPredictions | None = None,
    consented: bool = True,
) -> Reviewed:
    """Steps (1) to (7) of docs/protocol.md, "Signing". Raises a `VeilError` that says which step failed and why.

    `users`: how this party prepares attributes of its users; without it no question by attribute is signed.
    `columns`: what it gives to models on split columns; without it no such job is signed.
    `identifiers`: of its users with interactions; without them it signs no job that joins these with others' columns.
    `predictions`: what it lets published models score; without it no such job is signed.
    `consented`: False: whether rows fit the job is left open. A refusal tells whoever has submitted it, again and again
    with other numbers if they like, something of rows; where a person decides, not before that.
    """
    # (1) The text is canonical and its digest is the one that everybody else was shown.
    spec = parse(text)
    own_digest = digest(text)
    if own_digest != claimed_digest:
        raise ConfigError(
            f"got job digest {claimed_digest.hex()[:16]}…, expected {own_digest.hex()[:16]}… for this text",
            hint="the coordinator shows different texts to different parties, or the text was altered on the way",
        )
    # (2) It is for this consortium, names this party, and draws randomness where this party expects it.
    if spec.consortium != me.consortium:
        raise ConfigError(f"got a job of consortium {spec.consortium!r}, expected {me.consortium!r}")
    spec.rank(me.name)
    if spec.dealer != dealer:
        raise PolicyError(f"got dealer {spec.dealer!r}, expected {dealer!r}", hint="see [dealer] in the party's config")
    # (3) Everybody runs the same software.
    own_versions = {"veil": __version__, "dp-accounting": metadata.version("dp-accounting")}
    for name, version in own_versions.items():
        if spec.versions.get(name) != version:
            raise PolicyError(
                f"got a job for {name} {spec.versions.get(name)!r}, expected {version!r}",
                hint="install the same versions everywhere, then submit again",
            )
    if isinstance(spec.trainer, PredictionsTrainer):
        # It releases nothing, so (4) to (7) are other questions: the party's rules, the model, the recipient, the rows.
        _check_company(spec, rules)
        _check_first(own_digest, ledger)
        if predictions is None:
            raise PolicyError(
                "got a job that scores rows, expected none: this party lets no row be scored",
                hint="[predictions] in the party's config",
            )
        predictions.check(spec, own_digest, me.name, consented=consented)
        return Reviewed(spec, own_digest, 0.0)
    # (4) Everybody holds the same public catalogue, where the job has one.
    _check_catalogue(spec, catalogue)
    # (5) The releases are those that the trainer makes, no more, no less, with their true sensitivity; a module is one
    # that this party lists, by digest; columns are those that it gives, and its values fit them.
    check_job(spec, catalogue, modules=modules)
    _check_attributes(spec, users)
    users_at_most = _check_columns(spec, me.name, columns, consented)
    _check_side(spec, me.name, columns, identifiers, consented)
    for release in spec.releases:
        check_headroom(
            sensitivity=release.sensitivity,
            sigma=release.sigma,
            users=users_at_most,
            noise_source=spec.privacy.noise.source,
            parties=len(spec.parties),
        )
    # (6) The epsilon that the job claims is what its releases cost, recomputed here.
    epsilon = accountant.epsilon(spec.releases, spec.privacy.delta)
    if epsilon > spec.privacy.epsilon:
        raise PolicyError(
            f"got a job that claims epsilon {spec.privacy.epsilon:g}, expected at least {epsilon:.4f} for its releases"
        )
    # (7) The party's own rules and what is left of its budget.
    _check_rules(spec, rules, ledger.delta)
    _check_first(own_digest, ledger)
    ledger.check(spec.releases)
    return Reviewed(spec, own_digest, epsilon)


def _check_first(own_digest: bytes, ledger: Ledger) -> None:
    # A submission has a nonce, so a digest that is on record is a job shown again: consent is for one run.
    if any(entry.digest == own_digest for entry in ledger.entries()):
        raise StateError("got a job that has run here before, expected a new one", hint="submit it anew")


def _check_catalogue(spec: JobSpec, catalogue: Catalogue | None) -> None:
    if spec.catalogue is None:
        return
    if catalogue is None:
        raise PolicyError(
            f"got a job of trainer {spec.trainer.kind} on a catalogue, expected one for which this party has rows",
            hint="catalogue and [data] or [texts] in the party's config",
        )
    if spec.catalogue.digest != catalogue.digest:
        raise ConfigError(
            f"got catalogue {spec.catalogue.digest[:23]}…, expected {catalogue.digest[:23]}…",
            hint="distribute one catalogue directory to all parties",
        )


def _check_columns(spec: JobSpec, party: str, columns: HeldColumns | None, consented: bool) -> int:
    """How many users the job can have at most; for a job on split columns, the number of its slots."""
    if not isinstance(spec.trainer, ColumnsTrainer):
        return _MOST_USERS
    if columns is None:
        raise PolicyError("got a job on columns, expected one for which this party has rows", hint="[columns]")
    # Here and not above: it brings torch along, which other jobs do not need in the daemon.
    from veil.trainers.columns.dry import dry_run
    from veil.trainers.columns.terms import ColumnsTerms

    terms = ColumnsTerms.of(spec)
    dry_run(terms, spec.releases, spec.privacy.noise, rank=spec.rank(party))  # numbers fit, tensors are bounded
    columns.check(terms.schema, party, terms.alignment.sizes[spec.rank(party)] if consented else None)
    return terms.layout.rows


def _check_side(
    spec: JobSpec, party: str, columns: HeldColumns | None, identifiers: HeldIdentifiers | None, consented: bool
) -> None:
    """A recommender with side information: this party holds what the job takes of it, and can align it."""
    if not isinstance(spec.trainer, SideTrainer):
        return
    from veil.trainers.side.dry import dry_run
    from veil.trainers.side.terms import SideTerms

    terms, rank = SideTerms.of(spec), spec.rank(party)
    dry_run(terms, spec.releases, spec.privacy.noise, rank=rank)  # numbers fit, tensors are bounded
    most = terms.alignment.sizes[rank]
    if party != spec.trainer.items:
        if columns is None:
            raise PolicyError("got a job on columns, expected one for which this party has rows", hint="[columns]")
        columns.check(terms.schema, party, most if consented else None)
    elif identifiers is None:
        raise PolicyError(
            "got a job that aligns users with interactions by their ids, expected one on rows alone: none are kept",
            hint="[data] with align = true in the party's config",
        )
    elif consented:
        identifiers.check(party, most)


def _check_attributes(spec: JobSpec, users: Users | None) -> None:
    # The sensitivity of a question says what one user's rows change. That holds for an attribute that is a function of
    # the user's own row. Hiding or coarsening small classes is not: where one user leaves a class of k, all others of
    # it are hidden, and the answer moves by k. With "stop" the values are never changed: the file is refused.
    if not isinstance(spec.trainer, QueryTrainer):
        return
    rules = {} if users is None else {rule.name: rule for rule in users.attribute if not rule.dropped}
    for question in map(from_text, spec.trainer.questions):
        if question.attribute is None:
            continue
        rule = rules.get(question.attribute)
        if users is None or rule is None:
            raise PolicyError(
                f"got question {question.name} by attribute {question.attribute!r}, expected one that this party keeps",
                hint="[[users.attribute]] in the party's config",
            )
        if rule.role == "quasi-identifier" and users.anonymity.small_classes != "stop":
            raise PolicyError(
                f"got question {question.name} by attribute {question.attribute!r}, which is hidden or coarsened by "
                "what other users have, expected an attribute that depends on the user's own row only",
                hint='ask by a sensitive or insensitive attribute, or have every party set small_classes = "stop"',
            )


def _check_company(spec: JobSpec, rules: Approval) -> None:
    strangers = [name for name in spec.parties if rules.parties and name not in rules.parties]
    if strangers:
        raise PolicyError(
            f"got a job with {', '.join(strangers)}, expected parties that this one trains with",
            hint="[approval] parties in the party's config",
        )
    if len(spec.parties) < rules.min_parties:
        raise PolicyError(f"got {len(spec.parties)} parties, expected at least {rules.min_parties}")


def _check_rules(spec: JobSpec, rules: Approval, largest_delta: float) -> None:
    # At a larger delta the same epsilon stands for less noise: the rule on epsilon is meant at the party's own delta.
    if spec.privacy.delta > largest_delta:
        raise PolicyError(
            f"got delta {spec.privacy.delta:g}, expected at most {largest_delta:g}",
            hint="[budget] delta in the party's config",
        )
    _check_company(spec, rules)
    if spec.privacy.epsilon > rules.max_epsilon_per_job:
        raise PolicyError(
            f"got epsilon {spec.privacy.epsilon:g}, expected at most {rules.max_epsilon_per_job:g} per job",
            hint="[approval] max_epsilon_per_job in the party's config",
        )
    if spec.privacy.noise.source not in rules.noise_sources:
        raise PolicyError(
            f"got noise source {spec.privacy.noise.source!r}, expected one of {', '.join(rules.noise_sources)}"
        )
    others = len(spec.parties) - 1
    least = others if rules.min_colluding is None else min(rules.min_colluding, others)
    if colluding(spec.privacy.noise, len(spec.parties)) < least:
        raise PolicyError(
            f"got noise that holds against {spec.privacy.noise.colluding} colluding parties, expected {least}",
            hint="[approval] min_colluding in the party's config",
        )
