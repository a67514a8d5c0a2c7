"""Module files: nothing runs that was not listed by the party and named by digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainers.gradient.conftest import MakeSpec, write
from tests.unit.trainers.gradient.module_files import BILINEAR
from veil.errors import ConfigError, PolicyError
from veil.jobs.spec import GradientTrainer
from veil.recsys.catalogue import Catalogue
from veil.trainers.gradient.source import check_source, execute, load_code, read_code, source_digest
from veil.trainers.registry import algorithm_of, check_job


@pytest.fixture
def trainer(make_spec: MakeSpec) -> GradientTrainer:
    found = make_spec(BILINEAR).trainer
    assert isinstance(found, GradientTrainer)
    return found


def test_the_file_that_the_job_names_loads(trainer: GradientTrainer, tmp_path: Path) -> None:
    path = write(tmp_path, BILINEAR)
    assert source_digest(path) == trainer.module_sha256 == read_code(path, "net")[1]
    assert callable(load_code(trainer, {"net": path}).build)


def test_refusals_execute_nothing(
    make_spec: MakeSpec, catalogue: Catalogue, trainer: GradientTrainer, tmp_path: Path
) -> None:
    mark = tmp_path / "was-executed"
    other = write(tmp_path, f"open({str(mark)!r}, 'w').close()\n{BILINEAR}")
    spec = make_spec(BILINEAR)
    for modules, says in (
        ({}, "that this party lists"),
        ({"other": other}, "that this party lists"),
        ({"net": other}, "another version"),
        ({"net": tmp_path / "absent.py"}, "module 'net'"),
    ):
        with pytest.raises(PolicyError, match=says):
            check_source(trainer, modules)
        with pytest.raises(PolicyError, match=says):
            check_job(spec, catalogue, modules=modules)
        with pytest.raises(PolicyError, match=says):
            algorithm_of(spec, catalogue, modules=modules)
    assert not mark.exists()
    with pytest.raises(PolicyError, match="lists"):
        check_job(spec, catalogue)


def test_a_check_executes_nothing_even_when_it_passes(
    make_spec: MakeSpec, catalogue: Catalogue, tmp_path: Path
) -> None:
    mark = tmp_path / "was-executed"
    source = f"open({str(mark)!r}, 'w').close()\n{BILINEAR}"
    spec = make_spec(source)
    mark.unlink()
    check_job(spec, catalogue, modules={"net": write(tmp_path, source)})
    assert not mark.exists()
    algorithm_of(spec, catalogue, modules={"net": write(tmp_path, source)})
    assert mark.exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = ", "does not load: SyntaxError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("build = 1", "lacks build"),
    ],
)
def test_files_that_are_no_module_files(source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        execute(source.encode(), "net")
