"""What a side job costs and states, how its budget is divided, and what cannot be met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from he_inference.layouts.seam import MAX_DIMENSIONS
from tests.unit.trainers.side.shops import BANK, CITY, SHOP, World, catalogue
from veil.errors import ConfigError
from veil.jobs.columns import AlignmentTerms
from veil.jobs.request import CatalogueFacts, load
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec, parse
from veil.privacy.accountant import epsilon
from veil.recsys.postprocess import USER_TERMS
from veil.tabular.schema import ColumnsSchema, Label
from veil.trainers.registry import check_job, plan
from veil.trainers.side.algorithm import SideAlgorithm
from veil.trainers.side.terms import SideTerms, release_name, schema_of, schema_text

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_a_plan_costs_its_budget_and_hardly_less(budget: float) -> None:
    spec = World(parties=(BANK, SHOP, CITY), epsilon=budget).spec()
    assert 0.99 * budget < epsilon(spec.releases, 1e-5) <= budget
    assert parse(spec.text()) == spec
    names = [release.name for release in spec.releases if not release.name.startswith("round-")]
    kinds = ("statistics", "moment", "outer")
    assert names == ["counts", *(f"{kind}-{party}" for kind in kinds for party in (BANK, CITY))]


def test_the_budget_is_divided_as_asked() -> None:
    spec = World().spec(outer_share=0.5, rounds=0)
    squared = {one.name: (one.sensitivity / one.sigma) ** 2 for one in spec.releases}
    total = sum(squared.values())
    shares = {"counts": 0.45, "statistics-bank": 0.02, "moment-bank": 0.03, "outer-bank": 0.5}
    assert {name: round(value / total, 3) for name, value in squared.items()} == shares
    with pytest.raises(ConfigError, match="sum below 1"):
        World().spec(outer_share=0.97)
    with pytest.raises(ConfigError, match="unknown settings"):
        World().spec(outer_shares=0.1)


def test_a_request_becomes_a_job(tmp_path: Path) -> None:
    wish = load(ROOT / "deploy" / "job-side.toml")
    trainer, releases = plan(wish, CatalogueFacts("sha256:" + "0" * 64, 500, 20))
    assert isinstance(trainer, SideTrainer)
    assert trainer.items == "shop"
    assert epsilon(releases, 1e-6) <= 3.0
    assert releases[-1].shape == (500, 12)
    text = (ROOT / "deploy" / "job-side.toml").read_text().replace('items = "shop"', "")
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigError, match='items for "side" only'):
        load(tmp_path / "job.toml")


def changed(spec: JobSpec, **trainer: object) -> JobSpec:
    return spec.model_copy(update={"trainer": spec.trainer.model_copy(update=trainer)})


def resized(spec: JobSpec, name: str, **release: object) -> JobSpec:
    rest = [one.model_copy(update=release) if one.name == name else one for one in spec.releases]
    return spec.model_copy(update={"releases": tuple(rest)})


def test_what_does_not_fit_is_refused() -> None:
    world = World()
    sound = world.spec()
    check_job(sound, catalogue())
    labelled = json.loads(world.spec().trainer.columns)  # type: ignore[union-attr]
    labelled |= {"label": Label(name="y").model_dump(mode="json"), "label_party": BANK}
    with_label = json.dumps(labelled, sort_keys=True, separators=(",", ":"))
    alignment = world.alignment()
    cases = [
        (resized(sound, "outer-bank", sensitivity=2**20), "sensitivity"),
        (resized(sound, "moment-bank", sensitivity=2**20), "sensitivity"),
        (resized(sound, "statistics-bank", sensitivity=2**10), "sensitivity"),
        (resized(sound, "counts", sensitivity=2**10), "sensitivity"),
        (resized(sound, "outer-bank", shape=(250, 5)), "shape"),
        (sound.model_copy(update={"releases": sound.releases[:-1]}), "releases"),
        (changed(sound, items=BANK), "columns of bank, expected those of shop"),
        (changed(sound, columns=with_label), "label"),
        (changed(sound, columns=sound.trainer.columns + " "), "canonical"),  # type: ignore[union-attr]
        (changed(sound, alignment=alignment.model_copy(update={"result": 10})), "slots"),
        (changed(sound, triples="he"), "noise by the parties"),
    ]
    for spec, says in cases:
        with pytest.raises(ConfigError, match=says):
            check_job(spec, catalogue())
    with pytest.raises(ConfigError, match="expected side"):
        SideTerms.of(SideAlgorithm(sound, catalogue()).recommender_spec)
    with pytest.raises(ConfigError, match="without a catalogue"):
        check_job(sound, None)


def test_too_many_features_are_refused() -> None:
    schema = World().schema()
    bank = schema.parties[0]
    wide = bank.columns[0].model_copy(update={"vocabulary": tuple(f"v{n}" for n in range(1100))})
    party = bank.model_copy(update={"columns": (wide,)})
    text = schema_text(ColumnsSchema(slots=schema.slots, bits=12, parties=(party,)))
    assert schema_of(text).width == 1101
    trainer = World().spec().trainer.model_copy(update={"columns": text})
    with pytest.raises(ConfigError, match="user vector"):
        SideTerms.of_trainer(trainer, (SHOP, BANK), 250)  # type: ignore[arg-type]


def of_width(width: int, slots: int = 150) -> SideTerms:
    """A job whose one side party has so many features."""
    bank = World().schema().parties[0]
    wide = bank.columns[0].model_copy(update={"vocabulary": tuple(f"v{n}" for n in range(width - 1))})
    party = bank.model_copy(update={"columns": (wide,)})
    columns = schema_text(ColumnsSchema(slots=slots, bits=12, parties=(party,)))
    terms = {"mode": "hidden", "sizes": [slots // 2, slots // 2], "result": slots}
    trainer = (
        World()
        .spec(rounds=1)
        .trainer.model_copy(update={"columns": columns, "alignment": AlignmentTerms.model_validate(terms)})
    )
    return SideTerms.of_trainer(trainer, (SHOP, BANK), 250)  # type: ignore[arg-type]


def test_a_user_vector_is_no_longer_than_what_encrypted_scoring_takes() -> None:
    history = 4 + 6 + USER_TERMS
    assert history + of_width(MAX_DIMENSIONS - history).schema.width == MAX_DIMENSIONS
    with pytest.raises(ConfigError, match="user vector"):
        of_width(MAX_DIMENSIONS - history + 1)


def test_a_job_text_does_not_decide_how_much_memory_a_party_takes() -> None:
    assert of_width(16, slots=2**24).schema.slots * 16 == 2**28
    with pytest.raises(ConfigError, match="numbers in all"):
        of_width(17, slots=2**24)


def test_names_of_releases_stay_distinct() -> None:
    long = [f"{'p' * 47}{end}" for end in "ab"]
    names = [release_name(kind, party) for party in long for kind in ("moment", "outer")]
    assert len(set(names)) == 4
    assert all(len(name) <= 48 for name in names)
