"""Compiled code on the disk, in a folder of its own."""

from __future__ import annotations

from typing import Any

import numba

from veil.mpc.he import jit


def test_the_setting_of_the_process_is_put_back() -> None:
    config: Any = numba.config
    before = config.CACHE_DIR

    def twice(number: int) -> int:
        return 2 * number

    assert jit.kernel(twice)(21) == 42
    assert before == config.CACHE_DIR


def test_the_folder_follows_from_the_sources() -> None:
    folder = jit._folder()
    assert folder is None or folder == jit._FOLDER
    assert folder is None or folder.rsplit("-", 1)[1].isalnum()


def test_without_a_folder_kernels_are_made_all_the_same(monkeypatch: Any) -> None:
    monkeypatch.setattr(jit, "_FOLDER", None)

    def thrice(number: int) -> int:
        return 3 * number

    assert jit.kernel(thrice)(14) == 42
