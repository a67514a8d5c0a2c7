"""Flower's SecAgg+: its own server workflow and its own client part, joined in one process.

`python flower_sum.py REQUEST.json`, with the python of an environment made by `setup.sh flower FOLDER`; prints one JSON
document. The messages are handed over as they are, so no network and no TLS are in its time; clients run one after
another and the slowest one's time counts. Bytes are those of Flower's serialised records that a client sends.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity


class Clients:
    """What Flower's workflow sees of the network: every message goes straight to a client's SecAgg+ part."""

    def __init__(self, vectors: dict[int, Any]) -> None:
        self._vectors = vectors
        self._contexts = {node: context(node) for node in vectors}
        self.seconds = dict.fromkeys(vectors, 0.0)
        self.bytes_sent = dict.fromkeys(vectors, 0)
        self.counting_s = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        started = time.perf_counter()
        # As after a network: clients take apart what they get. Left out of their time.
        message = message_from_proto(message_to_proto(message))
        self.counting_s += time.perf_counter() - started
        started = time.perf_counter()
        answer = secaggplus_mod(message, self._contexts[node], lambda asked, _: self._fit(node, asked))
        answered = time.perf_counter()
        self.seconds[node] += answered - started
        self.bytes_sent[node] += size_bytes(answer.content)
        self.counting_s += time.perf_counter() - answered
        return answer

    def _fit(self, node: int, asked: Message) -> Message:
        status = Status(Code.OK, "")
        result = FitRes(status, ndarrays_to_parameters([self._vectors[node]]), 1, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=asked)


class Proxy(ClientProxy):
    """A client's name to Flower's strategy; the workflow itself speaks by messages only."""

    def __init__(self, node: int) -> None:
        super().__init__(str(node))
        self.node_id = node

    def _refuse(self, *_: Any) -> Any:
        raise NotImplementedError("only messages are used")

    get_properties = get_parameters = fit = evaluate = reconnect = _refuse


def size_bytes(content: RecordDict) -> int:
    """As it goes over the wire."""
    return int(recorddict_to_proto(content).ByteSize())


def context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder = Path(request["folder"])
    vectors = {1 + rank: np.load(folder / f"numbers-{rank}.npy") for rank in range(request["parties"])}
    total = sum(vector.astype(np.float64) for vector in vectors.values())
    clients, manager = Clients(vectors), SimpleClientManager()
    for node in vectors:
        manager.register(Proxy(node))
    parties = request["parties"]
    strategy = FedAvg(min_fit_clients=parties, min_available_clients=parties)
    server = LegacyContext(context(0), strategy=strategy, client_manager=manager)
    server.state.config_records["config"] = ConfigRecord({"current_round": 1})
    server.state.array_records["parameters"] = ArrayRecord([np.zeros(1, np.float32)])
    # Every client brings the largest weight, so that quantisation loses least.
    workflow = SecAggPlusWorkflow(num_shares=parties, reconstruction_threshold=parties - 1, max_weight=1.0)
    # What Flower's server process sets when it starts.
    TaskIdentity.run_id = TaskIdentity.task_id = 1
    TaskIdentity.node_id = 0
    started = time.perf_counter()
    workflow(clients, server)  # type: ignore[arg-type]
    elapsed_s = time.perf_counter() - started - clients.counting_s
    averaged = server.state.array_records["parameters"].to_numpy_ndarrays()[0]
    if averaged.shape != total.shape:
        raise ValueError("Flower has not aggregated")
    slowest_s = max(clients.seconds.values())
    server_s = elapsed_s - sum(clients.seconds.values())
    figures = {
        "seconds": slowest_s + server_s,
        "client_s": slowest_s,
        "server_s": server_s,
        "bytes_per_party": max(clients.bytes_sent.values()),
        "max_abs_error": float(np.abs(averaged * parties - total).max()),
        "version": metadata.version("flwr"),
        "setting": "SecAgg+, defaults, in one process: no network and no TLS in its time; slowest client and server",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
