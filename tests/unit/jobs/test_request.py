"""From an operator's job.toml to the text that parties sign."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from veil.errors import ConfigError, InputError
from veil.jobs.request import CatalogueFacts, JobRequest, load, resolve, versions
from veil.jobs.spec import Release, SubspaceTrainer, parse

ROOT = Path(__file__).parents[3]
FACTS = CatalogueFacts("sha256:" + "a" * 64, 10, 3)
SMALL = """
name = "spring"
parties = ["alpha", "beta"]
[catalogue]
path = "items"
[privacy]
epsilon = 3
delta = 1e-6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


class RecordingPlanner:
    """Stands where `veil.trainers.registry.plan` goes: says what it was asked and answers with a small plan."""

    def __call__(self, request: JobRequest, catalogue: CatalogueFacts) -> tuple[SubspaceTrainer, tuple[Release, ...]]:
        self.asked = (request, catalogue)
        trainer = SubspaceTrainer(dimensions=2, content_dimensions=1, rounds=0, clip=0.5, popularity_power=0.2)
        return trainer, (Release(name="counts", shape=(catalogue.items,), sensitivity=10, sigma=30),)


def test_the_example(tmp_path: Path) -> None:
    request = load(ROOT / "deploy" / "job.toml")
    assert request.parties == ("alpha", "beta", "gamma")
    assert request.catalogue.path == ROOT / "deploy" / "catalogue"
    assert request.trainer.overrides == {}
    text = (ROOT / "deploy" / "job.toml").read_text()
    # the keys that are commented out are real ones
    opened = load(write(tmp_path, text.replace("# dimensions", "dimensions").replace("# rounds", "rounds")))
    assert opened.trainer.overrides == {"dimensions": 48.0, "rounds": 2.0}


def test_resolve(tmp_path: Path) -> None:
    planner = RecordingPlanner()
    request = load(write(tmp_path, SMALL + 'noise = "parties"\n[trainer]\nrounds = 0\nmix-taste-log = 0.5\n'))
    spec = resolve(request, consortium="trial", catalogue=FACTS, planner=planner)
    assert planner.asked == (request, FACTS)
    assert request.privacy.noise == "parties"
    assert request.trainer.overrides == {"rounds": 0.0, "mix-taste-log": 0.5}
    assert parse(spec.text()) == spec
    assert (spec.consortium, spec.dealer, spec.catalogue.digest) == ("trial", "main", FACTS.digest)
    assert spec.versions == versions()
    assert {"veil", "torch", "crypten", "dp-accounting"} == set(spec.versions)


def test_each_submission_has_its_own_nonce(tmp_path: Path) -> None:
    request = load(write(tmp_path, SMALL))
    texts = {resolve(request, consortium="trial", catalogue=FACTS, planner=RecordingPlanner()).text() for _ in range(3)}
    assert len(texts) == 3


def test_with_the_real_planner(tmp_path: Path) -> None:
    from veil.privacy.accountant import epsilon
    from veil.trainers.registry import plan

    facts = CatalogueFacts(FACTS.digest, 200, 30)
    spec = resolve(load(write(tmp_path, SMALL)), consortium="trial", catalogue=facts, planner=plan)
    assert 0 < epsilon(spec.releases, 1e-6) <= 3.0
    assert spec.releases[0].shape == (201,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALL.replace("epsilon = 3", "epsilon = -3"), "privacy.epsilon"),
        (SMALL.replace("epsilon = 3", "epsilon = inf"), "privacy.epsilon"),
        (SMALL.replace("delta = 1e-6", "delta = 0.5"), "privacy.delta"),
        (SMALL.replace('"beta"', '"alpha"'), "party twice"),
        (SMALL.replace('"beta"', '"Beta Ltd"'), "parties.1"),
        (SMALL.replace(', "beta"', ""), "parties"),
        (SMALL + "epsilom = 4\n", "epsilom"),
        (SMALL + '[trainer]\nkind = "magic"\n', "trainer.kind"),
        (SMALL + '[trainer]\nrounds = "two"\n', "trainer.overrides.rounds"),
        (SMALL + "[trainer]\nclip = nan\n", "trainer.overrides.clip"),
        (SMALL.replace('name = "spring"', ""), "name"),
        ("name = ", "not TOML"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, text))


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than"):
        load(write(tmp_path, SMALL + "#" * 100_000))


def test_a_plan_that_does_not_fit_a_job(tmp_path: Path) -> None:
    def twice(request: JobRequest, catalogue: CatalogueFacts) -> tuple[SubspaceTrainer, tuple[Release, ...]]:
        trainer, releases = RecordingPlanner()(request, catalogue)
        return trainer, releases * 2

    with pytest.raises(ConfigError, match="release name twice"):
        resolve(load(write(tmp_path, SMALL)), consortium="trial", catalogue=FACTS, planner=twice)


def test_reading_a_request_needs_no_numerical_library() -> None:
    code = (
        "import sys, veil.jobs.request, veil.jobs.reports, veil.jobs.signing, veil.jobs.convert\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'crypten', 'dp_accounting'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
