"""The coordinator cannot see data: its messages have no place for them, and its program nothing to read them with."""

from __future__ import annotations

import subprocess
import sys

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from veil.wire.v1 import coordinator_pb2

# Every bytes field that may reach or leave the coordinator: hashes and signatures over them.
DECLARED_BYTES = {
    "veil.wire.v1.Job.digest",
    "veil.wire.v1.Approval.signature",
    "veil.wire.v1.Outcome.manifest_digest",
}
ALLOWED_FILES = {"veil/wire/v1/coordinator.proto", "veil/wire/v1/job.proto"}
_FLOATING = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


def reachable() -> dict[str, Descriptor]:
    service = coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"]
    ahead = [message for method in service.methods for message in (method.input_type, method.output_type)]
    found: dict[str, Descriptor] = {}
    while ahead:
        message = ahead.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            ahead += [field.message_type for field in message.fields if field.message_type is not None]
    return found


def test_the_walk_reaches_the_messages_that_matter() -> None:
    names = {name.rpartition(".")[2] for name in reachable()}
    assert {"JoinRequest", "JoinResponse", "JobRecord", "Job", "Approval", "Progress", "Outcome", "Failure"} <= names


def test_no_floating_point_field() -> None:
    fields = [field.full_name for message in reachable().values() for field in message.fields]
    assert len(fields) > 50
    wrong = [field.full_name for message in reachable().values() for field in message.fields if field.type in _FLOATING]
    assert wrong == []


def test_no_undeclared_bytes_field() -> None:
    found = {
        field.full_name
        for message in reachable().values()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_BYTES
    }
    assert found == DECLARED_BYTES


def test_no_message_of_mesh_dealer_or_inference() -> None:
    assert {message.file.name for message in reachable().values()} == ALLOWED_FILES


def test_no_catch_all_field() -> None:
    for message in reachable().values():
        assert not message.is_extendable
        assert message.full_name.startswith("veil.wire.v1."), "google.protobuf.Any and Struct could carry anything"


def test_the_program_loads_no_tensors_sharing_or_encryption() -> None:
    code = (
        "import sys, coordinator.__main__, coordinator.service\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'crypten', 'tenseal', 'safetensors'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith(('veil.mpc', 'veil.recsys', 'veil.text'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n[]\n"
