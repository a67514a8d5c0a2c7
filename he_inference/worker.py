"""One worker process of the scoring server: the only process that lets SEAL touch bytes from a client.

Started by `he_inference.pool` as `python -m he_inference.worker --fd N --items-fd K`, where N is one end of a socket
pair and K an unlinked file with the item vectors. It inherits no credentials, no other
descriptor and nothing of the environment but paths and locale. It is no sandbox: it runs as the server's user.

Guarantee: malformed input is answered with a sentence; input that makes native code fail harder ends this process and
nothing else. Memory, file size and core dumps are limited. Evaluation keys are held in a bounded cache and never
written.
"""

from __future__ import annotations

import argparse
import mmap
import resource
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from he_inference import frames
from he_inference.packing import SessionLayout
from he_inference.parameters import named
from he_inference.scheme import CkksEvaluator
from he_inference.scoring import EncodedItems, encode_items, score
from veil.errors import CiphertextError, VeilError

# Beyond what the encoded items take: keys, one query's ciphertexts, and room for the largest frame.
_WORKING_BYTES = 768 * 1024 * 1024
_LARGEST_FILE_BYTES = 64 * 1024 * 1024
# What SEAL raises from arithmetic on objects that were valid when loaded; a bug or exhausted memory.
_SEAL_ERRORS = (ValueError, RuntimeError, IndexError, MemoryError)


class Worker:
    """Encoded items, and the evaluation keys that were used last."""

    def __init__(self, layout: SessionLayout, rows: np.ndarray[Any, np.dtype[np.float64]], key_slots: int) -> None:
        self._evaluator = CkksEvaluator(layout.parameters)
        self._layout = layout
        self._items: EncodedItems[Any] = encode_items(self._evaluator, layout, rows)
        self._keys: OrderedDict[str, Any] = OrderedDict()
        self._key_slots = key_slots

    def answer(self, header: dict[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """The reply to one request: "register" (keys) or "score" (query, and keys when this worker has lost them)."""
        kind, name = header.get("kind"), str(header.get("key"))
        if kind == "register" and len(parts) == 1:
            self._remember(name, parts[0])
            return {"kind": "ok"}, []
        if kind == "score" and len(parts) in (1, 2):
            if len(parts) == 2:
                self._remember(name, parts[1])
            keys = self._keys.get(name)
            if keys is None:
                return {"kind": "keys"}, []
            self._keys.move_to_end(name)
            return self._score(parts[0], keys)
        raise CiphertextError(f"got request {kind!r} with {len(parts)} parts, expected register or score")

    def _remember(self, name: str, data: bytes) -> None:
        self._keys[name] = self._evaluator.load_keys(data, self._layout.galois_elements)
        self._keys.move_to_end(name)
        while len(self._keys) > self._key_slots:
            self._keys.popitem(last=False)

    def _score(self, data: bytes, keys: Any) -> tuple[dict[str, Any], list[bytes]]:
        query = self._evaluator.load_query(data)
        started = time.perf_counter_ns()
        try:
            ciphertexts = score(self._evaluator, self._items, query, keys)
        except _SEAL_ERRORS:
            raise CiphertextError("got a query that cannot be computed with", hint="make it anew") from None
        compute_us = (time.perf_counter_ns() - started) // 1000
        return {"kind": "scores", "compute_us": compute_us}, [self._evaluator.save(c) for c in ciphertexts]


def serve(stream: socket.socket, worker: Worker) -> None:
    """Answers requests until the server closes its end."""
    while True:
        try:
            header, parts = frames.receive(stream)
        except frames.FrameError:
            return
        try:
            reply, payload = worker.answer(header, parts)
        except VeilError as error:
            reply, payload = {"kind": "error", "message": error.message, "hint": error.hint}, []
        frames.send(stream, reply, payload)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="he_inference.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--items-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    # An undisclosed memory image stays undisclosed.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE_BYTES, _LARGEST_FILE_BYTES))
    with socket.socket(fileno=options.fd) as stream:
        header, _ = frames.receive(stream)
        layout = SessionLayout(named(header["parameters"]), int(header["items"]), int(header["dimensions"]))
        with mmap.mmap(options.items_fd, 0, access=mmap.ACCESS_READ) as view:
            rows = np.frombuffer(view, dtype=np.float32).reshape(layout.items, layout.dimensions).astype(np.float64)
        worker = Worker(layout, rows, int(header["key_slots"]))
        del rows
        _limit_memory()
        frames.send(stream, {"kind": "ready"})
        serve(stream, worker)
    return 0


def _limit_memory() -> None:
    """No more address space than now and `_WORKING_BYTES`: content that expands ends here, not the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + _WORKING_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
