"""A whole consortium on one machine, for trials, tests and the demo.

Guarantee: nothing that exists is replaced; running it again adds who is missing under the same authority. Between
organisations each site makes its own key instead (`veil.identity.site`), and the authority lies on a machine apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veil.errors import IdentityError
from veil.identity import certificates
from veil.identity.authority import make_authority, sign_request
from veil.identity.credentials import AUTHORITY_FILE, CERTIFICATE_FILE, Credentials
from veil.identity.names import Identity, Role
from veil.identity.site import install, make_request

AUTHORITY_FOLDER = "authority"
SINGLE = "main"
_MOST_PARTIES = 64


def make_consortium(
    directory: Path, consortium: str, parties: Sequence[str], *, passphrase: bytes | None = None
) -> dict[Identity, Path]:
    """Directories by identity: coordinator, dealer, scoring server, operator and client "main", each of `parties` and
    an operator named like each.

    Each lies at `directory`/<role>-<name>, loadable with `Credentials.load`; the authority lies at
    `directory`/authority. Raises `IdentityError` for malformed or repeated names, or when `directory` belongs to
    another consortium.
    """
    if not 1 <= len(parties) <= _MOST_PARTIES or len(set(parties)) != len(parties):
        raise IdentityError(f"got {len(parties)} parties, {len(set(parties))} of them different, expected 1 to 64")
    singles = (Role.COORDINATOR, Role.DEALER, Role.SCORING, Role.OPERATOR, Role.CLIENT)
    members = [Identity(consortium, role, SINGLE) for role in singles]
    members += [Identity(consortium, role, name) for name in parties for role in (Role.PARTY, Role.OPERATOR)]
    authority = directory / AUTHORITY_FOLDER
    if not authority.exists():
        make_authority(authority, consortium, passphrase=passphrase)
    authority_pem = certificates.read_pem(authority / AUTHORITY_FILE)
    _, held = certificates.parse_authority(authority_pem)
    if held != consortium:
        raise IdentityError(f"got {directory}, which belongs to consortium {held}, expected {consortium} or a new one")
    return {member: _enrol(directory, member, authority, authority_pem, passphrase) for member in members}


def _enrol(directory: Path, member: Identity, authority: Path, authority_pem: bytes, passphrase: bytes | None) -> Path:
    folder = directory / member.folder
    if (folder / CERTIFICATE_FILE).exists():
        identity = Credentials.load(folder).identity
        if identity != member:
            raise IdentityError(f"got {identity} in {folder}, expected {member}")
        return folder
    request_pem = make_request(folder, member).read_bytes()
    certificate_pem = sign_request(authority, request_pem, role=member.role, name=member.name, passphrase=passphrase)
    install(folder, certificate_pem, authority_pem)
    return folder
