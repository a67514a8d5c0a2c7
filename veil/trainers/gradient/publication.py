"""A trained module as a published directory, and back.

Guarantee: `load_module` returns a module only when every required party has signed the manifest, every file has the
size and SHA-256 that it lists, the module file has the digest that the job names, and the weights fit the module that
this file builds. The module file is executed after the signatures have been checked, not before.

    manifest.json         `veil.recsys.manifest.OutcomeManifest`, kind "module"
    job.json              the job text that the parties signed before training
    weights.safetensors   the trainable parameters by name, float32; everything frozen is rebuilt from the module file
    module.json           name and digest of the module file, options, digest of the facts
    signatures.json       one signature for each party
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, PolicyError
from veil.identity.names import Identity
from veil.jobs.spec import GradientTrainer, JobSpec, Name, Sha256, canonical
from veil.recsys.catalogue import Catalogue
from veil.recsys.manifest import OutcomeManifest
from veil.recsys.signed import check_job, job_facts, listed, manifest_bytes, parsed, verify_directory
from veil.trainers.gradient import facts as public_facts
from veil.trainers.gradient.source import load_code

SCHEMA: Final = "veil.module/1"
_HEADER_BYTES: Final = 1024 * 1024
_MODULE_BYTES: Final = 64 * 1024


class ModuleFacts(BaseModel):
    """module.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    schema_: Literal["veil.module/1"] = Field(default=SCHEMA, alias="schema")
    module: Name
    module_sha256: Sha256
    parameters: int = Field(gt=0)
    options: dict[str, float]
    facts_digest: Sha256


@dataclass(frozen=True, eq=False, repr=False)
class ModulePublication:
    """`veil.trainers.seam.Publication` of a module. weights: float32, the trainable parameters by name."""

    trainer: GradientTrainer
    facts_digest: str
    weights: Mapping[str, npt.NDArray[np.float32]]

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """See `Publication.files`."""
        described = ModuleFacts(
            module=self.trainer.module,
            module_sha256=self.trainer.module_sha256,
            parameters=self.trainer.parameters,
            options=dict(self.trainer.options),
            facts_digest=self.facts_digest,
        )
        return {
            "job.json": spec.text().encode("ascii"),
            "weights.safetensors": dump_safetensors(
                {name: np.ascontiguousarray(array) for name, array in sorted(self.weights.items())}
            ),
            "module.json": canonical(described.model_dump(mode="json", by_alias=True)).encode("ascii"),
        }

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """See `Publication.manifest`."""
        return manifest_bytes(OutcomeManifest(**job_facts(spec, files, created_s=created_s), kind="module"))


def load_module(
    directory: Path,
    authority_pem: bytes,
    module_file: Path,
    catalogue: Catalogue,
    *,
    require_signers: Sequence[Identity] | None = None,
) -> torch.nn.Module:
    """Verifies a published module and rebuilds it, in evaluation mode.

    module_file: one's own copy of the module file; executed once its digest is the published one. catalogue: the public
    catalogue that the job names. Raises `ArtifactError`.
    """
    manifest, _ = verify_directory(directory, authority_pem, require_signers=require_signers)
    if not isinstance(manifest, OutcomeManifest) or manifest.kind != "module":
        raise ArtifactError("got a published directory of another kind, expected a module")
    spec = check_job(directory, manifest)
    trainer = spec.trainer
    if not isinstance(trainer, GradientTrainer):
        raise ArtifactError(f"got a module from a job of trainer {trainer.kind!r}, expected gradient")
    if catalogue.digest != spec.items.digest:
        raise ArtifactError(f"got catalogue {catalogue.digest[:23]}…, expected {spec.items.digest[:23]}…")
    described = parsed(
        TypeAdapter(ModuleFacts), listed(directory, manifest, "module.json", _MODULE_BYTES), "module.json"
    )
    facts = public_facts.job_facts(spec, trainer, catalogue)
    said = (described.module, described.module_sha256, described.parameters, described.options, described.facts_digest)
    due = (
        *(trainer.module, trainer.module_sha256, trainer.parameters, trainer.options),
        public_facts.facts_digest(facts, catalogue),
    )
    if said != due:
        raise ArtifactError("got a module.json that differs from the job text, expected the same")
    arrays = _weights(listed(directory, manifest, "weights.safetensors", 4 * trainer.parameters + _HEADER_BYTES))
    try:
        code = load_code(trainer, {trainer.module: module_file})
    except PolicyError as error:
        raise ArtifactError(error.message, hint="give the module file that the job was run with") from None
    module = public_facts.built(code, facts)
    wanted = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    if {name: array.shape for name, array in arrays.items()} != wanted:
        raise ArtifactError("got weights of other names or shapes, expected those of the module's parameters")
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return module.eval()


def _weights(data: bytes) -> dict[str, npt.NDArray[np.float32]]:
    try:
        arrays = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError("got weights.safetensors that does not parse, expected safetensors") from None
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays.values()):
        raise ArtifactError("got weights that are not finite float32 numbers, expected finite ones")
    return dict(arrays)
