"""A text classifier for several labels at once: MiniLM with LoRA adapters and a linear head, for gradient rounds.

A module file (`veil.trainers.gradient.contract`): parties list it under [modules] in their configuration and train it
together on texts that they do not show each other. Trainable are, with 18 labels, 13,074 numbers of the 22.7 million:
rank-4 adapters on query and value of the last attention layer (Hu et al., LoRA, ICLR 2022; by `peft`) and the head. Few
numbers matter here for privacy and not for memory: the noise of a round has the length sigma C sqrt(parameters),
whatever they do.

The frozen layers below the first adapter are public and are run once for each text, in `example`, so that a round
costs one layer instead of six. Privacy is not touched by that: it is a fixed function of one user's own text.

The head starts from what the public encoder says of the labels' names ("a War movie"), which costs nothing and helps
rare labels most, about which noised rounds learn least.

A user's loss is the mean over labels of the binary cross entropy. Where a user has several texts, the first counts.

Options of a job: module-adapted (1: how many of the last layers get adapters; 0 trains the head alone), module-rank
(4), module-tokens (12: texts are cut), module-scale (8: what the unit text vector is multiplied by), module-names (16:
how much the names of the labels count at the start; 0 for an empty head).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from veil.errors import ConfigError
from veil.text.encoder import MISSING_DEFAULT, default_folder
from veil.trainers.gradient.contract import Facts, Tensors, UserRows

ROWS = "texts"
ENGINE = "opacus"


class Classifier(nn.Module):
    """The last layers of the encoder, mean pooling, and a linear head."""

    def __init__(self, layers: nn.ModuleList, width: int, labels: int, scale: float) -> None:
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(width, labels)
        self.scale = scale
        nn.init.zeros_(self.head.weight)
        # Before any data: each text has two of the labels, which is a guess.
        nn.init.constant_(self.head.bias, -math.log(max(labels / 2.0 - 1.0, 1.0)))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """float32[n, labels]: log odds. hidden: float32[n, tokens, width]; mask: bool[n, tokens]."""
        blocked = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in self.layers:
            made = layer(hidden, attention_mask=blocked)
            hidden = made[0] if isinstance(made, tuple) else made
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        logits: torch.Tensor = self.head(nn.functional.normalize(mean, dim=1) * self.scale)
        return logits


def build(facts: Facts) -> nn.Module:
    """The module; its initial weights are the public encoder's, adapters that change nothing, and an empty head."""
    adapted = _adapted(facts)
    model = _encoder()
    layers = nn.ModuleList(list(model.encoder.layer)[len(model.encoder.layer) - adapted :])
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    if adapted:
        rank = int(facts.option("rank", 4))
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=["query", "value"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, layers)
    scale = facts.option("scale", 8.0)
    module = Classifier(layers, model.config.hidden_size, len(facts.labels), scale)
    if facts.option("names", 16.0):
        names = _names(facts.labels)
        module.head.weight.data = (names - names.mean(dim=0)) * (facts.option("names", 16.0) / scale)
    return module


def example(user: UserRows, facts: Facts) -> Tensors | None:
    """One text as the frozen layers see it: hidden float32[tokens, 384], mask bool[tokens], label float32[labels]."""
    length = int(facts.option("tokens", 12))
    width = _lower(_adapted(facts))[2]
    hidden, mask = torch.zeros(length, width), torch.zeros(length, dtype=torch.bool)
    label = torch.zeros(len(facts.labels))
    # A user without rows only shows the shapes.
    if user.texts:
        label[:] = torch.from_numpy(user.labels[0])
        below = _KNOWN.get((user.texts[0], _adapted(facts), length))
        if below is None:
            below = _below([user.texts[0]], facts)[0]
        hidden[: len(below)] = below
        mask[: len(below)] = True
    return {"hidden": hidden, "mask": mask, "label": label}


def remember(texts: Sequence[str], facts: Facts, batch_size: int = 64) -> None:
    """Runs the frozen layers over many texts at once, for `example` to find: four times as fast.

    For evaluations in one place, never called at a party. Padding changes the last bits.
    """
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        for text, below in zip(batch, _below(batch, facts), strict=True):
            _KNOWN[text, _adapted(facts), int(facts.option("tokens", 12))] = below


def loss(module: nn.Module, users: Tensors, draws: Tensors, facts: Facts) -> torch.Tensor:
    """float32[n]: mean binary cross entropy over the labels."""
    logits = module(users["hidden"], users["mask"])
    every = nn.functional.binary_cross_entropy_with_logits(logits, users["label"], reduction="none")
    return every.mean(dim=1)


def _adapted(facts: Facts) -> int:
    return int(facts.option("adapted", 1))


def _encoder() -> Any:
    folder = default_folder()
    if folder is None:
        raise ConfigError(MISSING_DEFAULT)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # No dropout in any mode: what is drawn for one text would depend on the others in the pass.
        return AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).eval()
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@functools.cache
def _names(labels: tuple[str, ...]) -> torch.Tensor:
    """float32[labels, width]: unit vectors of "a <label> movie"."""
    tokenizer, encoder, _ = _lower(0)
    tokens = tokenizer([f"a {label} movie" for label in labels], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**tokens).last_hidden_state
    weight = tokens["attention_mask"].unsqueeze(-1).float()
    return nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=1)


_KNOWN: dict[tuple[str, int, int], torch.Tensor] = {}


def _below(texts: Sequence[str], facts: Facts) -> list[torch.Tensor]:
    """float32[tokens, width] for each text."""
    tokenizer, lower, _ = _lower(_adapted(facts))
    length = int(facts.option("tokens", 12))
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        hidden = lower(**tokens).last_hidden_state
    return [row[: int(own.sum())].clone() for row, own in zip(hidden, tokens["attention_mask"], strict=True)]


@functools.cache
def _lower(adapted: int) -> tuple[Any, Any, int]:
    """Tokenizer, the encoder without its last `adapted` layers, and its width."""
    model = _encoder()
    model.encoder.layer = model.encoder.layer[: len(model.encoder.layer) - adapted]
    model.encoder.config.num_hidden_layers = len(model.encoder.layer)
    tokenizer = AutoTokenizer.from_pretrained(str(default_folder()), local_files_only=True)
    return tokenizer, model.requires_grad_(False), model.config.hidden_size
