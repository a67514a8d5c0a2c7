"""Encrypted scores by the generated stubs and the encryption layer alone: what a client in another language does.

Run: python examples/score_plain_grpc.py HOST:PORT CREDENTIALS_DIR [SERVER_NAME]

Sends one random user vector. `ScoringClient` (examples/score_from_app.py) does all of this and more: it keeps keys,
retries, verifies the model's signatures, turns a history into a vector and item numbers into titles.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import grpc
import numpy as np
from cryptography import x509

from he_inference.layouts.catalogue import layout_of
from he_inference.scheme import SecretKey
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc as stubs


def main(address: str, credentials_dir: str, server_name: str = "main") -> None:
    """Prints the numbers of the ten best items for a random vector."""
    folder = Path(credentials_dir)
    certificate = (folder / "cert.pem").read_bytes()
    # (1) Mutual TLS. The consortium's name stands in one's own certificate: veil://<consortium>/<role>/<name>. A server
    #     is called <name>.<role>.<consortium>.veil.internal in its certificate, wherever it listens.
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    consortium = names.value.get_values_for_type(x509.UniformResourceIdentifier)[0].split("/")[2]
    tls = grpc.ssl_channel_credentials(
        (folder / "authority.pem").read_bytes(), (folder / "key.pem").read_bytes(), certificate
    )
    options = [("grpc.ssl_target_name_override", f"{server_name}.scoring.{consortium}.veil.internal")]
    with grpc.secure_channel(address, tls, options) as channel:
        inference = stubs.InferenceServiceStub(channel)

        # (2) Offers: parameters are taken by name from one's own list of sound ones, never number by number from the
        #     server, and everything else follows from them.
        asked = inference.GetParameters(messages.GetParametersRequest(), timeout=30)
        offer = next(offer for offer in asked.offers if offer.layout in ("session", "keyless"))
        layout = layout_of(offer.layout, offer.parameters, offer.items, offer.dimensions, offer.packing)
        if list(layout.galois_elements) != list(offer.galois_elements) or layout.blocks != offer.results:
            sys.exit("the server has another layout")

        # (3) Keys: the secret one stays here, the evaluation keys go to the server once, in pieces of 1 MiB at most. A
        #     keyless offer needs none.
        secret = SecretKey(layout.parameters)
        keys, key_digest = b"", b""
        if layout.galois_elements:
            keys = secret.evaluation_keys(layout.galois_elements)
            pieces = [keys[start : start + 2**20] for start in range(0, len(keys), 2**20)]
            registered = inference.RegisterKeys(
                (
                    messages.RegisterKeysRequest(parameters_digest=b"" if n else offer.parameters_digest, payload=piece)
                    for n, piece in enumerate(pieces)
                ),
                timeout=30,
            )
            key_digest = registered.key_digest

        # (4) A query: a unit vector, encrypted under the secret key. The request id makes a retry count once.
        vector = np.random.default_rng().normal(size=layout.dimensions)
        norm = float(np.linalg.norm(vector))
        request = messages.ScoreRequest(
            key_digest=key_digest,
            query=secret.encrypt(layout.query_polynomials(vector / norm)),
            offer_digest=offer.offer_digest,
            request_id=secrets.token_bytes(16),
        )
        results = [data for part in inference.Score(request, timeout=60) for data in part.results]

        # (5) Scores of all items, decrypted and ranked here. They must not be sent back (docs/threat-model.md).
        numbers, bits = secret.decrypt(results, layout.coefficient_places())
        scores = layout.scores(numbers, bits) * norm * offer.item_norm
        for number in np.argsort(-scores)[:10]:
            print(f"item {number:6d}  score {scores[number]:8.4f}")
        print(f"{len(keys)} bytes of keys once, {len(request.query)} of query, {sum(map(len, results))} of response")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
