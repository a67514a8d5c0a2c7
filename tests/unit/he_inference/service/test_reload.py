"""What a server looks at to find out that something has changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from he_inference.service.reload import Loader


def published(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text("{}")


def test_a_model_that_comes_while_others_are_taken_up_is_seen_afterwards(tmp_path: Path) -> None:
    models = tmp_path / "models"
    published(models, "first")
    config: Any = SimpleNamespace(state=tmp_path / "state", model=models, offer_specs=(), audiences=())
    loader, generation = Loader(config), SimpleNamespace(indexes=())
    # here the first generation is made, and another model comes
    published(models, "second")
    seen = loader.seen(generation)  # type: ignore[arg-type]
    assert loader.look() != seen
    # here both are taken up, and yet another comes
    published(models, "third")
    seen = loader.seen(generation)  # type: ignore[arg-type]
    found = loader.look()
    assert found != seen and len(found) == 3
    # nothing else happens
    assert loader.seen(generation) == found == loader.look()  # type: ignore[arg-type]


def test_a_folder_that_was_seen_half_copied_is_seen_again_when_it_is_whole(tmp_path: Path) -> None:
    models = tmp_path / "models"
    published(models, "first")
    config: Any = SimpleNamespace(state=tmp_path / "state", model=models, offer_specs=(), audiences=())
    loader = Loader(config)
    for name in ("signatures.json", "weights.safetensors"):
        before = loader.look()
        assert loader.look() == before
        (models / "first" / name).write_bytes(b"")
        assert loader.look() != before
