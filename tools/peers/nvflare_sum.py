"""NVFlare's aggregation under TenSEAL's CKKS: its own encryptor, aggregation helper and decryptor, in one process.

`python nvflare_sum.py REQUEST.json`, with the python of an environment made by `setup.sh nvflare FOLDER`; prints one
JSON document. Parameters are those of NVFlare's provisioning (8192, [60, 40, 40], scale 2^40, one key for all clients).
What travels is serialised as NVFlare serialises it and read again, but no network and no TLS are in the time.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tenseal
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_opt.he.decomposers import CKKSVectorDecomposer
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

# A model has layers; one of ten million numbers would be unusual.
_LAYERS = 10


def contexts() -> tuple[Any, Any]:
    """A client's context with the common secret key, and the server's without."""
    builder = HEBuilder(scheme="CKKS")
    builder.initialize(None, None)
    return tuple(tenseal.context_from(builder.get_serialized_context(is_client=client)) for client in (True, False))


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.CRITICAL)
    folder, parties = Path(request["folder"]), request["parties"]
    client_context, server_context = contexts()
    coding, helper, state = CKKSVectorDecomposer(), WeightedAggregationHelper(weigh_by_local_iter=False), FLContext()
    total: Any = 0.0
    encrypt_s, server_s, sent = [], 0.0, []
    for rank in range(parties):
        numbers = np.load(folder / f"numbers-{rank}.npy")
        total = total + numbers.astype(np.float64)
        started = time.perf_counter()
        layers = {f"layer-{index}": part for index, part in enumerate(np.array_split(numbers, _LAYERS))}
        encryptor = HEModelEncryptor(weigh_by_local_iter=False)
        encryptor.tenseal_context, encryptor.encrypt_layers = client_context, [True]
        encrypted, _ = encryptor.encryption(layers, state)
        parts = {name: coding.decompose(vector)[0] for name, vector in encrypted.items()}
        del encrypted
        ended = time.perf_counter()
        encrypt_s.append(ended - started)
        sent.append(sum(map(len, parts.values())))
        arrived = {name: tenseal.ckks_vector_from(server_context, part) for name, part in parts.items()}
        helper.add(arrived, 1.0, f"client-{rank}", 0)
        server_s += time.perf_counter() - ended
    started = time.perf_counter()
    averaged = helper.get_result()
    answer = {name: coding.decompose(vector)[0] for name, vector in averaged.items()}
    server_s += time.perf_counter() - started
    started = time.perf_counter()
    received = {name: tenseal.ckks_vector_from(client_context, part) for name, part in answer.items()}
    decryptor = HEModelDecryptor()
    decryptor.tenseal_context = client_context
    opened = decryptor.decryption(received, dict.fromkeys(received, True), state)
    decrypt_s = time.perf_counter() - started
    found = np.concatenate([np.asarray(opened[f"layer-{index}"]) for index in range(_LAYERS)]) * parties
    client_s = max(encrypt_s) + decrypt_s
    figures = {
        "seconds": client_s + server_s,
        "client_s": client_s,
        "server_s": server_s,
        "bytes_per_party": max(sent),
        "bytes_answer": sum(map(len, answer.values())),
        "max_abs_error": float(np.abs(found - total).max()),
        "version": f"{metadata.version('nvflare')}, tenseal {metadata.version('tenseal')}",
        "setting": "CKKS 8192 [60, 40, 40], one key for all clients, in one process: no network in its time",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
