"""A `VeilError` as JSON and back, for the two processes of one party."""

from __future__ import annotations

from veil.errors import BY_CODE, DataError, PeerError, VeilError

_MAX_TEXT = 1024


def to_document(error: VeilError) -> dict[str, object]:
    """Code, sentence, hint and culprits of an error."""
    document: dict[str, object] = {"code": error.code, "message": error.message[:_MAX_TEXT]}
    if error.hint:
        document["hint"] = error.hint[:_MAX_TEXT]
    if isinstance(error, PeerError):
        document["culprits"] = list(error.culprits)
    if isinstance(error, DataError):
        document["lines"] = list(error.lines[:100])
    return document


def from_document(document: object) -> VeilError:
    """The same class of error again; `VeilError` itself for an unknown code."""
    if not isinstance(document, dict):
        return VeilError("got an error without content")
    kind = BY_CODE.get(str(document.get("code")), VeilError)
    message = str(document.get("message", ""))[:_MAX_TEXT]
    hint = str(document["hint"])[:_MAX_TEXT] if document.get("hint") else None
    if issubclass(kind, PeerError):
        return kind(message, culprits=[str(name)[:64] for name in _list(document, "culprits")], hint=hint)
    if issubclass(kind, DataError):
        lines = [line for line in _list(document, "lines") if isinstance(line, int)]
        return kind(message, lines=lines, hint=hint)
    return kind(message, hint=hint)


def _list(document: dict[str, object], name: str) -> list[object]:
    value = document.get(name)
    return value if isinstance(value, list) else []
