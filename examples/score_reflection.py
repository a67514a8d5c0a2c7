"""What a scoring server offers, without any generated code: its services by reflection, then two calls by name.

Run: python examples/score_reflection.py HOST:PORT CREDENTIALS_DIR [SERVER_NAME]

The same by hand, with the server's name in its certificate as -authority:

    grpcurl -cacert authority.pem -cert cert.pem -key key.pem -authority main.scoring.CONSORTIUM.veil.internal \\
        HOST:PORT describe veil.wire.v1.InferenceService
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from he_inference.client import scoring_server
from veil.identity.credentials import Credentials
from veil.wire.channel import open_channel

SERVICE = "veil.wire.v1.InferenceService"


def main(address: str, credentials_dir: str, server_name: str = "main") -> None:
    """Prints services, methods and messages, then the parameters and the model card."""
    credentials = Credentials.load(Path(credentials_dir))
    with open_channel(address, credentials, scoring_server(credentials, server_name)) as channel:
        found = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(found)
        # (1) Which services there are.
        print("services:", ", ".join(sorted(found.get_services())))

        # (2) The methods of the one that scores, and the messages that they take and give.
        service = pool.FindServiceByName(SERVICE)
        shown: dict[str, Descriptor] = {}
        for method in service.methods:
            print(f"rpc {method.name}({_stream(method, 'client')}) returns ({_stream(method, 'server')})")
            shown.update({one.name: one for one in (method.input_type, method.output_type)})
        for name, message in shown.items():
            print(f"message {name} {{ {' '.join(map(_field, message.fields))} }}")

        # (3) Two calls with messages that were made a moment ago.
        for name in ("GetParameters", "GetModelCard"):
            answer = _call(channel, service.methods_by_name[name])
            print(f"{name}: {json_format.MessageToJson(answer, indent=2, preserving_proto_field_name=True)}")


def _call(channel: grpc.Channel, method: MethodDescriptor) -> Any:
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return call(request(), timeout=30)


def _stream(method: MethodDescriptor, side: str) -> str:
    streaming = method.client_streaming if side == "client" else method.server_streaming
    kind = method.input_type if side == "client" else method.output_type
    return ("stream " if streaming else "") + kind.name


def _field(field: FieldDescriptor) -> str:
    kinds = {value: name[5:].lower() for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    kind = field.message_type.name if field.message_type else kinds[field.type]
    return f"{'repeated ' if field.is_repeated else ''}{kind} {field.name} = {field.number};"


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
