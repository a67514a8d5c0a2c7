"""Another model or a changed index without a restart, and without a query that is dropped for it.

Guarantee: what is new is verified, built and run once before it is offered; where that fails, the reason is logged once
and what was offered stays. Queries for what was offered before are answered for the configured time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from he_inference.collection import PART_FILES
from he_inference.index.linear_models import manifests_of
from he_inference.service.audience import read_hidden
from he_inference.service.config import ScoringConfig
from he_inference.service.generations import Generation, Generations, View
from he_inference.service.indexing import Wanted, index_files, paths_of
from he_inference.service.pool import WorkerPool
from he_inference.service.process import IndexFile
from he_inference.service.published import PublishedModel
from veil.errors import ConfigError, StateError, VeilError
from veil.trainers.columns.linear import WEIGHTS_FILE

_STOP_WITHIN_S = 10.0
_log = logging.getLogger("veil.he_inference.service.reload")


class Loader:
    """Makes generations as the configuration says."""

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config
        self._folder = config.state / "index"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # As they were before the model was opened that is served, or is being opened.
        self._looked_at = self._manifests()

    def load(self, model: PublishedModel, *, anew: bool = False) -> Generation:
        """The generation of a model; index files that are absent or of another model are built. Raises `VeilError`."""
        specs = self._config.offer_specs
        wanted = [Wanted(tuple(self._folder / name for name in spec.file_names), spec) for spec in specs]
        audiences = self._config.audiences
        wanted += [
            Wanted(paths_of(one.index, specs[0]), specs[0], read_hidden(one.hidden, len(model.factors)))
            for one in audiences
        ]
        files = index_files(wanted, model, self._folder, threads=self._config.load.threads, anew=anew)
        try:
            views = {one.name: View.of([file]) for one, file in zip(audiences, files[len(specs) :], strict=True)}
            return Generation(model, View.of(files[: len(specs)]), audiences, views)
        except BaseException:
            for file in files:
                file.close()
            raise

    def first(self, model: PublishedModel, pool: WorkerPool) -> Generation:
        """The first generation, served by `pool`; index files that turn out to be damaged are built once more."""
        generation = self.load(model)
        try:
            pool.serve(generation.indexes)
        except StateError as error:
            _log.warning("builds the index files anew: %s", error)
            generation.close(keep=model)
            generation = self.load(model, anew=True)
            try:
                pool.serve(generation.indexes)
            except BaseException:
                generation.close(keep=model)
                raise
        return generation

    def seen(self, generation: Generation) -> tuple[object, ...]:
        """What the files looked like that a generation was made from.

        Manifests as they were when last looked at, before the model was opened: what has come since (one model after
        the other, into one folder) is seen the next time.
        """
        files = (_state(os.fstat(one)) for index in generation.indexes for one in index.descriptors)
        return (*self._looked_at, *files)

    def look(self) -> tuple[object, ...]:
        """The same, of the files that lie there now."""
        specs = self._config.offer_specs
        paths = [self._folder / name for spec in specs for name in spec.file_names]
        paths += [path for one in self._config.audiences for path in paths_of(one.index, specs[0])]
        self._looked_at = self._manifests()
        return (*self._looked_at, *(_look(path) for path in paths))

    def _manifests(self) -> list[object]:
        """One for a recommender, of a fixed place; of models on columns one for each, with the folder's name.

        With the files beside it: a folder that is being copied has its manifest before the rest.
        """
        beside = (*PART_FILES, WEIGHTS_FILE)
        found = manifests_of(self._config.model)
        return [(path.parent.name, *(_look(path.with_name(name)) for name in beside)) for path in found]


class Reloader:
    """Watches model and index files; `check` may also be called by hand. One thread at a time does the work."""

    def __init__(
        self,
        loader: Loader,
        open_model: Callable[[], PublishedModel],
        generations: Generations,
        pool: WorkerPool,
        every_s: float,
        changed: Callable[[Generation], None],
    ) -> None:
        """changed: told of each new generation."""
        self._loader = loader
        self._open_model = open_model
        self._generations = generations
        self._pool = pool
        self._every_s = every_s
        self._changed = changed
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._seen = loader.seen(generations.current)
        self._thread = threading.Thread(target=self._follow, name="veil-reload", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def soon(self) -> None:
        """Looks at the files now, in the watching thread; for a signal handler."""
        self._wake.set()

    def stop(self) -> None:
        """Ends the watch; a reload that is under way is waited for a while, and finds a pool that is closed then."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_WITHIN_S)

    def check(self) -> bool:
        """Takes up what has changed; whether something has. Raises nothing: the reason stands in the log."""
        with self._lock:
            stale = self._generations.stale
            if stale:
                self._drop(stale)
            found = self._loader.look()
            if found == self._seen:
                return False
            # Before anything else: what cannot be taken up is tried once, not every few seconds.
            self._seen = found
            try:
                generation = self._loaded()
            except (VeilError, OSError) as error:
                _log.error("what is offered stays as it is: %s", error)
                return False
            self._generations.replace(generation)
            self._seen = self._loader.seen(generation)
            self._changed(generation)
            return True

    def _loaded(self) -> Generation:
        """The new generation, which the pool serves already."""
        model = self._open_model()
        try:
            generation = self._loader.load(model)
            try:
                self._pool.serve(generation.indexes + self._held())
            except BaseException:
                generation.close(keep=model)
                raise
        except BaseException:
            model.close()
            raise
        return generation

    def _drop(self, stale: list[Generation]) -> None:
        kept = [index for one in self._generations.held if one not in stale for index in one.indexes]
        try:
            self._pool.serve(kept)
        except (StateError, ConfigError) as error:
            # Its files stay open as long as a process may have to be started with them.
            _log.error("a former model stays in memory: %s", error)
            return
        self._generations.forget(stale)
        for generation in stale:
            generation.close(keep=self._generations.current.model)

    def _held(self) -> list[IndexFile]:
        return [index for generation in self._generations.held for index in generation.indexes]

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._every_s or None)
            self._wake.clear()
            if not self._stop.is_set():
                self.check()


def _look(path: Path) -> tuple[int, ...] | None:
    try:
        return _state(path.stat())
    except OSError:
        return None


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
