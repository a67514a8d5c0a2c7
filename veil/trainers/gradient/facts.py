"""What a module may know of a job (the public facts), and the module that a module file builds from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from veil.errors import ConfigError
from veil.jobs.spec import GradientTrainer, JobSpec, canonical
from veil.jobs.spec import digest as job_digest
from veil.recsys.catalogue import Catalogue
from veil.trainers.gradient.contract import Facts, ModuleCode
from veil.trainers.gradient.releases import MODULE_OPTION_PREFIX


def facts_of(catalogue: Catalogue, *, seed: int, options: Mapping[str, float]) -> Facts:
    """The facts for a seed below 2^63; options: those of the job, of which the module sees its own."""
    return Facts(
        features=torch.from_numpy(catalogue.features.copy()),
        titles=tuple(catalogue.titles),
        categories=tuple(tuple(names) for names in catalogue.categories),
        labels=tuple(sorted({name for names in catalogue.categories for name in names})),
        seed=seed,
        options={
            name.removeprefix(MODULE_OPTION_PREFIX): float(value)
            for name, value in options.items()
            if name.startswith(MODULE_OPTION_PREFIX)
        },
    )


def job_seed(spec: JobSpec, purpose: str) -> int:
    """A public number below 2^63, another one for every job and purpose."""
    mixed = hashlib.sha256(b"veil/gradient-seed/v1\x00" + job_digest(spec.text()) + purpose.encode("ascii")).digest()
    return int.from_bytes(mixed[:8], "big") >> 1


def job_facts(spec: JobSpec, trainer: GradientTrainer, catalogue: Catalogue) -> Facts:
    """The facts of a job."""
    return facts_of(catalogue, seed=job_seed(spec, "build"), options=trainer.options)


def facts_digest(facts: Facts, catalogue: Catalogue) -> str:
    """`sha256:` and SHA-256 of what the facts are made of: with the module file, it pins everything that is frozen."""
    text = canonical(
        {"catalogue": catalogue.digest, "options": dict(sorted(facts.options.items())), "seed": str(facts.seed)}
    )
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def built(code: ModuleCode, facts: Facts) -> torch.nn.Module:
    """The module with its initial weights, from the facts' seed. Raises `ConfigError`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(facts.seed)
        try:
            module = code.build(facts)
        except Exception as error:  # noqa: BLE001 - a foreign file may raise anything; no user is involved
            raise ConfigError(f"build() fails: {type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"got {type(module).__name__} from build(), expected a torch.nn.Module")
    return module
