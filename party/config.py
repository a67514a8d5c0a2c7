"""The party's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/party.toml` shows every key with a comment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from veil import settings
from veil.deidentify.pipeline import Anonymity, AttributeRule
from veil.deidentify.source import UserReadConfig
from veil.errors import ConfigError
from veil.jobs.predictions import DEFAULT_OUTPUT_BITS, LEAST_OUTPUT_BITS, MOST_OUTPUT_BITS
from veil.jobs.spec import Name
from veil.recsys.attributes import MAX_ATTRIBUTES
from veil.recsys.reading import ReadConfig
from veil.recsys.reading_texts import TextReadConfig
from veil.recsys.table import TableFormat
from veil.recsys.texts import MAX_LABELS
from veil.settings import Address, Section


class Remote(Section):
    """Another program of the consortium: where it listens and the name that its certificate must carry."""

    address: Address
    name: Name = "main"


class Data(Section):
    """The party's own rows."""

    source: Path
    read: ReadConfig
    # 32 random bytes that turn user ids into pseudonyms; made on first use, mode 0600, never leaves this machine.
    pseudonym_key: Path
    # Keep the users' ids too, in a file of mode 0600, for jobs that join these rows with other parties' columns: users
    # are aligned by ids, which enter a job under a blinding of its own. Without it no such job is signed.
    align: bool = False


class Texts(Section):
    """Labelled texts of the party's users, for jobs that train a text classifier."""

    source: Path
    read: TextReadConfig
    # The public list that labels come from, in the order of the classifier's outputs: the same at every party of a job.
    # None: every category that occurs in the catalogue, sorted.
    labels: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=MAX_LABELS)
    # As in [data]; given here only by a party without [data], so that one user has one pseudonym.
    pseudonym_key: Path | None = None


class Users(Section):
    """Attributes of the party's users, and the pipeline that takes out what identifies them."""

    source: Path
    read: UserReadConfig
    # Columns that no attribute names are not kept.
    attribute: tuple[AttributeRule, ...] = Field(min_length=1, max_length=MAX_ATTRIBUTES)
    anonymity: Anonymity = Anonymity()


class Columns(Section):
    """Columns of the party's users for models on columns of several parties, one row a user."""

    source: Path
    format: TableFormat = TableFormat()
    # The column by which records are aligned with other parties'. It never leaves this machine readably.
    identifier: str = Field(min_length=1, max_length=128)
    # The columns that a job may use; no other is read.
    use: tuple[str, ...] = Field(min_length=1, max_length=1024)
    # The columns that a job may take as outcome to predict. Empty: none.
    labels: tuple[str, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = (self.identifier, *self.use, *self.labels)
        if len(set(names)) != len(names):
            raise ValueError("got a column twice in identifier, use and labels, expected each once")
        return self


class Predictions(Section):
    """New rows of this party's users that published models may score, and who may learn the scores.

    What a score tells: one known function of a user's columns here (for logistic regression a linear one), up to the
    grid that the job states, with no noise. **One score can tell several columns at once**: the recipient takes off its
    own part and looks which combination of categories gives the rest; at 16 bits that is some 16 yes-or-no columns.
    Several models tell several functions, and as many linear ones as a user has columns tell any columns; a model with
    hidden units tells one number more in every job. So `recipients` should be parties that may know these columns of
    these users; `most_bits` and `rows_a_day` bound how much they learn and how fast. With alignment "reveal" every
    party of the job learns which users are common, of the recipient's too. The models are those that this party has
    signed. Rows have the identifier and the columns that [columns] lists.
    """

    source: Path
    format: TableFormat = TableFormat()
    # Parties that may learn scores of this party's users. Empty: none.
    recipients: tuple[Name, ...] = Field(default=(), max_length=256)
    # Fractional bits of scores (log odds) told to others, at most.
    most_bits: int = Field(default=DEFAULT_OUTPUT_BITS, ge=LEAST_OUTPUT_BITS, le=MOST_OUTPUT_BITS)
    # Rows of this party scored for others within 24 hours, over all jobs, counted as the jobs declare them.
    rows_a_day: int = Field(default=100_000, ge=1, le=2**40)


class Mesh(Section):
    """What carries messages between parties while a job runs, once they have met over mutual TLS.

    "gloo" gives up encryption, authentication of who sends, and reconnection (`veil.mpc.gloo_plane`): whoever can read
    the network learns the parties' own numbers. All parties of a job must have the same.
    """

    plane: Literal["grpc", "gloo"] = "grpc"
    # With gloo: own address or name that peers can reach. gloo takes any free port there and tells it over the mesh.
    gloo_host: str | None = Field(default=None, min_length=1, max_length=253)

    @model_validator(mode="after")
    def _host_for_gloo(self) -> Self:
        if (self.plane == "gloo") != (self.gloo_host is not None):
            raise ValueError('expected gloo_host with plane = "gloo" and not without')
        return self


class Budget(Section):
    """What may be released over all jobs, for ever."""

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=0.01)


class Approval(Section):
    """Who says yes to a job: these rules, or these rules and a person (`veil party approve`)."""

    mode: Literal["policy", "manual"] = "manual"
    max_epsilon_per_job: float = Field(gt=0, le=1000)
    min_parties: int = Field(default=2, ge=2, le=16)
    # Parties, by name, that a job may have, this one among them. Empty: every party of the consortium.
    parties: tuple[Name, ...] = Field(default=(), max_length=256)
    noise_sources: tuple[Literal["dealer", "parties"], ...] = ("dealer", "parties")
    # Against how many parties that pool their draws the noise of a job must hold. Empty: all others.
    min_colluding: int | None = Field(default=None, ge=0, le=15)
    # With "policy": jobs on columns answered by rules alone within 24 hours; others wait for a person. Whether such a
    # job is signed tells whoever submits it something of the rows, and they can ask again with other numbers.
    row_answers_a_day: int = Field(default=20, ge=0, le=1000)


class PartyConfig(Section):
    """Everything that the daemon needs. Relative paths are relative to the file."""

    # Address that the one port is bound to, and the address at which peers reach it.
    listen: Address
    advertise: Address
    # Where other parties' streams are taken without gRPC, over TLS alone, which makes rounds about three times as fast:
    # reached at the host of `advertise` and this port. Empty, or at the other party empty: all of it goes over gRPC.
    listen_direct: Address | None = None
    # Directory with key.pem, cert.pem and authority.pem.
    credentials: Path
    # Directory for the ledger, the prepared rows and the models. Mode 0700.
    state: Path
    # Directory of the public item catalogue; needed for [data] and [texts].
    catalogue: Path | None = None
    coordinator: Remote
    dealer: Remote
    # One of these three at least; attributes are kept of users who have interactions or texts.
    data: Data | None = None
    texts: Texts | None = None
    columns: Columns | None = None
    users: Users | None = None
    # Without it no job scores this party's rows; its columns are those of [columns].
    predictions: Predictions | None = None
    mesh: Mesh = Mesh()
    budget: Budget
    approval: Approval
    # Operators (by certificate name) who may ask for the status and decide on jobs.
    # Empty: the one that is named like the party.
    operators: tuple[Name, ...] = ()
    # Python files of the modules that gradient jobs may train here, by name; a job names one and its SHA-256.
    modules: dict[Name, Path] = Field(default_factory=dict, max_length=64)
    # How long a round may wait for a peer, seconds.
    peer_timeout_s: float = Field(default=120.0, gt=1, le=3600)

    @model_validator(mode="after")
    def _one_key_and_rows(self) -> Self:
        recommends = self.data is not None or self.texts is not None
        if not recommends and self.columns is None:
            raise ValueError("got neither [data] nor [texts] nor [columns], expected the party's rows")
        if recommends and self.catalogue is None:
            raise ValueError("got no catalogue, expected one beside [data] or [texts]")
        if self.predictions is not None and self.columns is None:
            raise ValueError("got [predictions] without [columns], expected both: it says which columns may be used")
        if self.users is not None and not recommends:
            raise ValueError("got [users] without [data] or [texts], expected one of them")
        if self.texts is not None and (self.texts.pseudonym_key is None) == (self.data is None):
            raise ValueError("expected one pseudonym_key: in [data], or in [texts] where there is no [data]")
        return self

    @property
    def pseudonym_key(self) -> Path:
        """The key file that user ids of every source are replaced with."""
        if self.data is not None:
            return self.data.pseudonym_key
        if self.texts is None or self.texts.pseudonym_key is None:
            raise ConfigError("got no pseudonym_key, expected one in [data] or [texts]")
        return self.texts.pseudonym_key


def load(path: Path) -> PartyConfig:
    """Reads and checks the file. Raises `ConfigError` that names each wrong key."""
    config = settings.read(path, PartyConfig, explained_in="deploy/party.toml")
    return _absolute(config, path.resolve().parent)


def _absolute(config: PartyConfig, root: Path) -> PartyConfig:
    # root / path is path where it is absolute.
    changes: dict[str, Any] = {name: root / getattr(config, name) for name in ("credentials", "state")}
    changes["catalogue"] = config.catalogue and root / config.catalogue
    changes["modules"] = {name: root / path for name, path in config.modules.items()}
    for name in ("data", "texts", "users", "columns", "predictions"):
        section = getattr(config, name)
        if section is not None:
            paths = {key: root / value for key, value in section if isinstance(value, Path)}
            changes[name] = section.model_copy(update=paths)
    if config.users is not None:
        rules = tuple(rule.anchored(root) for rule in config.users.attribute)
        changes["users"] = changes["users"].model_copy(update={"attribute": rules})
    return config.model_copy(update=changes)
