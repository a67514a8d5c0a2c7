"""One compute process, as the scoring server sees it: how it is started, asked and ended.

Guarantee: the process gets one socket, the index files and nothing else: no credentials, no descriptor, and of the
environment what `he_inference.service.setting` lists. What it answers is checked for length before it is used; anything
unexpected raises `FrameError`, after which the process must be ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from he_inference.index.format import read_front
from he_inference.index.header import Header
from he_inference.layouts.catalogue import result_bytes
from he_inference.layouts.history import whole_layout
from he_inference.layouts.history_parts import FoldInLayout, OutputLayout
from he_inference.layouts.seam import Layout
from he_inference.service import frames
from he_inference.service.setting import Setting
from veil.errors import ArtifactError, CiphertextError, ConfigError

KEY_SLOTS = 256
# Reading a large index from a cold disk, and compiling every kernel the first time, take minutes on a slow machine.
_START_TIMEOUT_S = 900.0
_RAY_END_S = 10.0
_WORKER = "he_inference.service.worker"


@dataclass(frozen=True, eq=False)
class IndexFile:
    """The index file of an offer, or the two of a history, open: they stay readable when others take their names."""

    paths: tuple[Path, ...]
    layout: Layout
    item_norm: float
    model_digest: bytes
    item_ids_digest: bytes
    generation: int
    descriptors: tuple[int, ...] = field(repr=False)
    removed: tuple[int, ...] = ()

    @classmethod
    def open(cls, *paths: Path) -> IndexFile:
        """Checks all but the blocks, which each process checks that is started with it. Raises `ArtifactError`."""
        descriptors: list[int] = []
        try:
            fronts = []
            for path in paths:
                descriptors.append(_opened(path))
                fronts.append(read_front(descriptors[-1], path.name))
            headers = [front.header for front in fronts]
            last = headers[-1]
            # A history's answers lie beside its items; nothing is ever removed from those two files.
            removed = np.flatnonzero(fronts[0].removed).tolist() if len(fronts) == 1 else []
            return cls(
                paths,
                _whole(headers),
                last.item_norm,
                last.model_digest,
                last.item_ids_digest,
                last.generation,
                tuple(descriptors),
                tuple(removed),
            )
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """No further process can be started with it."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(f"got no readable index at {path.name}: {error.strerror}") from None


def _whole(headers: Sequence[Header]) -> Layout:
    """The layout of an index of these parts."""
    if len(headers) == 1:
        return headers[0].layout
    fold_in, output = headers
    if not isinstance(fold_in.layout, FoldInLayout) or not isinstance(output.layout, OutputLayout):
        raise ArtifactError("got two index files that are not the parts of a history's")
    if (fold_in.model_digest, fold_in.item_ids_digest) != (output.model_digest, output.item_ids_digest):
        raise ArtifactError("got the parts of an index from different models, expected the same")
    try:
        return whole_layout(fold_in.layout, output.layout)
    except ConfigError as error:
        raise ArtifactError(error.message) from None


@dataclass(slots=True)
class Answer:
    """Of a batch: results of each query, or its error; and the time that reading and arithmetic took."""

    results: list[list[bytes]]
    errors: dict[int, CiphertextError] = field(default_factory=dict)
    compute_us: int = 0
    read_us: int = 0
    lacking: tuple[int, ...] = ()


class Process:
    """A process with some index files. One thread uses it at a time; `end` may come from any."""

    def __init__(self, indexes: Sequence[IndexFile], setting: Setting) -> None:
        """Starts it. Raises `OSError`."""
        self.indexes = list(indexes)
        self._ray, self._cuda = setting.ray, setting.cuda
        self._known: OrderedDict[str, None] = OrderedDict()
        self._ending = threading.Lock()
        ours, theirs = socket.socketpair()
        self._stream = ours
        command = [sys.executable, "-P", "-m", _WORKER, "--fd", str(theirs.fileno())]
        for index in self.indexes:
            command += ["--index-fd", ",".join(map(str, index.descriptors))]
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    command,
                    pass_fds=(theirs.fileno(), *(one for index in self.indexes for one in index.descriptors)),
                    env=setting.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def start(self) -> None:
        """Blocks until it has opened the index files and run every kernel. Raises `FrameError`.

        And `ConfigError` when its engine is not there, which no other process would find either.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        paths = [[str(path) for path in index.paths] for index in self.indexes]
        header = {"kind": "start", "key_slots": KEY_SLOTS, "paths": paths, "ray": self._ray, "cuda": self._cuda}
        reply, _ = self._ask(header, [], deadline)
        if reply.get("code") == ConfigError.code:
            hint = reply.get("hint")
            raise ConfigError(str(reply.get("message")), hint=None if hint is None else str(hint))
        if reply.get("kind") != "ready":
            raise frames.FrameError(str(reply.get("message", f"a first answer {reply.get('kind')!r}")))

    def knows(self, name: str) -> bool:
        """Whether it holds the keys of that name."""
        return name in self._known

    def register(self, index: IndexFile, name: str, keys: bytes, deadline: float) -> CiphertextError | None:
        """Gives it keys; returns what is wrong with them, if anything. Raises `FrameError`."""
        header = {"kind": "register", "index": self.indexes.index(index), "key": name}
        reply, _ = self._ask(header, [keys], deadline)
        if reply.get("kind") == "ok":
            self._remember(name)
            return None
        return _error(reply.get("message"), reply.get("hint"))

    def score(self, index: IndexFile, queries: Sequence[tuple[str, bytes, bytes | None]], deadline: float) -> Answer:
        """Scores queries: the name of the keys of each, the query, and its keys when they are sent along.

        `lacking` in the answer: queries whose keys it does not hold; then nothing was computed. Raises `FrameError`.
        """
        asked = [{"key": name, "keys": keys is not None} for name, _, keys in queries]
        parts = [query for _, query, _ in queries] + [keys for _, _, keys in queries if keys is not None]
        request = {"kind": "score", "index": self.indexes.index(index), "queries": asked}
        header, runs = self._ask(request, parts, deadline)
        answer = Answer([[] for _ in queries])
        size = result_bytes(index.layout)
        computed: list[list[bytes]] = []
        while header.get("kind") == "part":
            computed = computed or [[] for _ in runs]
            if len(runs) != len(computed) or any(len(run) % size for run in runs):
                raise frames.FrameError("results of a wrong length")
            for results, run in zip(computed, runs, strict=True):
                results.extend(run[start : start + size] for start in range(0, len(run), size))
            header, runs = frames.receive(self._stream, deadline=deadline)
        if header.get("kind") == "lacking":
            for place in header["queries"]:
                self._known.pop(queries[place][0], None)
            answer.lacking = tuple(header["queries"])
            return answer
        if header.get("kind") != "done":
            raise frames.FrameError(str(header.get("message", "no scores")))
        answer.errors = {int(place): _error(message, hint) for place, message, hint in header["errors"]}
        answer.compute_us, answer.read_us = int(header["compute_us"]), int(header["read_us"])
        good = [place for place in range(len(queries)) if place not in answer.errors]
        if len(good) != len(computed):
            raise frames.FrameError(f"results of {len(computed)} queries, of {len(good)} expected")
        for place, results in zip(good, computed, strict=True):
            answer.results[place] = results
            if queries[place][2] is not None or queries[place][0] in self._known:
                self._remember(queries[place][0])
        return answer

    def end(self) -> None:
        """Ends the process and waits for it; again does nothing."""
        with self._ending:
            if self._ray is not None:
                # Ray ends what it started when it is asked to; what it leaves when it is killed stays for a minute.
                self._popen.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._popen.wait(_RAY_END_S)
            self._popen.kill()
            self._popen.wait()
            # A thread that reads from the stream meets its end, not a descriptor that is somebody else's by now.
            try:
                self._stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.close()

    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.poll()

    def _ask(self, header: dict[str, Any], parts: list[bytes], deadline: float) -> tuple[dict[str, Any], list[bytes]]:
        self._stream.settimeout(max(0.001, deadline - time.monotonic()))
        frames.send(self._stream, header, parts)
        return frames.receive(self._stream, deadline=deadline)

    def _remember(self, name: str) -> None:
        self._known[name] = None
        self._known.move_to_end(name)
        while len(self._known) > KEY_SLOTS:
            self._known.popitem(last=False)


def _error(message: object, hint: object) -> CiphertextError:
    return CiphertextError(str(message or "no answer"), hint=None if hint is None else str(hint))
