"""Film titles to genres: MiniLM with LoRA adapters, fine-tuned by three parties that do not show their titles.

    python examples/text_genres/run.py --data ml-1m:FOLDER --epsilon 8            one process, the real mechanism
    python examples/text_genres/run.py --data ml-1m:FOLDER --epsilon 8 --joint    real processes, mutual TLS

Unit of privacy: the user, and in this example every title is a user of its own: the guarantee is per labelled title
(add or remove one title with its genres). A fifth of the titles is held out for the report, the rest is split over
three parties as .55, .30 and .15. The job's catalogue lists the 18 genre names and nothing about any film.

Beside the private model: the same module without noise or clipping, the head alone (no adapters) with and without
privacy, and the most frequent genres for everyone. A label is predicted from probability .2 on, and the likeliest one
always. `SETTINGS`, epochs and that threshold were chosen on a fifth of the training titles of MovieLens-1M, never on
the titles of the report; that choice was not paid for from the privacy budget. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import classification_report, f1_score

from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Release
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.recsys.catalogue import Catalogue
from veil.recsys.datasets import load_dataset
from veil.recsys.features import build_catalogue
from veil.recsys.items import ItemTable
from veil.recsys.splits import by_user
from veil.recsys.texts import LabelledTexts
from veil.text.phrasing import film_name, split_title
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.contract import Facts, UserRows
from veil.trainers.gradient.facts import built, facts_of
from veil.trainers.gradient.local_update import trainable_size
from veil.trainers.gradient.plan import plan_gradient
from veil.trainers.gradient.source import read_code
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state

Bools = npt.NDArray[np.bool_]

MODULE = Path(__file__).with_name("classifier.py")
NAME = "text-genres"
PARTIES = ("alpha", "beta", "gamma")
SHARES = (0.55, 0.30, 0.15)
DELTA = 1e-5
SPLIT_SEED = 7
THRESHOLD = 0.2
EPOCHS = {0: 10, 1: 4}  # of plaintext training, by number of adapted layers

SETTINGS: dict[str, float] = {"rounds": 60, "sampling": 0.25, "clip": 0.5, "rate": 0.005}


@dataclass(frozen=True, eq=False, repr=False)
class Titles:
    """Texts with genres, split. train: rows of the three parties in turn; test: rows of the report."""

    names: tuple[str, ...]
    texts: list[str]
    labels: Bools
    parties: list[npt.NDArray[np.int64]]
    test: npt.NDArray[np.int64]

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """The rows of all parties."""
        return np.concatenate(self.parties)

    def part(self, rows: npt.NDArray[np.int64]) -> LabelledTexts:
        """These rows, each a user of its own."""
        texts = [self.texts[row] for row in rows]
        return LabelledTexts(len(rows), np.arange(len(rows)), texts, self.labels[rows], names=self.names)


def load_titles(data: str) -> Titles:
    """The titled films of a MovieLens data set, without year and with the article first; "NAME:FOLDER"."""
    table = load_dataset(data).table
    films = [(film_name(split_title(t)[0]), names) for t, names in zip(table.titles, table.categories, strict=True)]
    films = [(text, names) for text, names in films if text and names]
    names = tuple(sorted({name for _, own in films for name in own}))
    labels = np.array([[name in own for name in names] for _, own in films])
    order = np.random.default_rng(SPLIT_SEED).permutation(len(films)).astype(np.int64)
    test, train = order[: len(films) // 5], order[len(films) // 5 :]
    parties = [train[part] for part in by_user(len(train), SHARES, seed=SPLIT_SEED)]
    return Titles(names, [text for text, _ in films], labels, parties, test)


def label_catalogue(names: tuple[str, ...]) -> Catalogue:
    """The public catalogue of the job: one item for each genre, which is how parties agree on labels."""
    return build_catalogue(ItemTable(ids=names, titles=names, categories=tuple((name,) for name in names)))


def plan_job(catalogue: Catalogue, epsilon: float, settings: dict[str, float]) -> JobSpec:
    """The job that the parties would sign, with an invented consortium."""
    code, digest = read_code(MODULE, NAME)
    size = trainable_size(built(code, facts_of(catalogue, seed=0, options=settings)))
    trainer, releases = plan_gradient(
        epsilon=epsilon,
        delta=DELTA,
        noise_source="dealer",
        parties=len(PARTIES),
        module=NAME,
        module_sha256=digest,
        parameters=size,
        overrides=settings,
    )
    return JobSpec(
        name=NAME,
        nonce="0" * 32,
        consortium="simulation",
        parties=PARTIES,
        dealer="main",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=catalogue.items, features=catalogue.features.shape[1]),
        privacy=jobs.Privacy(epsilon=epsilon, delta=DELTA, noise=jobs.Noise(source="dealer")),
        trainer=trainer,
        releases=releases,
        versions={},
    )


def train_private(titles: Titles, catalogue: Catalogue, spec: JobSpec, seed: int) -> tuple[torch.nn.Module, Facts]:
    """All parties' titles in one place, through the steps and the integer mechanism of a joint job."""
    code, _ = read_code(MODULE, NAME)
    algorithm = GradientAlgorithm(spec, catalogue, code, coins=keyed_source(seed.to_bytes(32, "big"), b"coins"))
    rows = titles.part(titles.train)
    code.remember(rows.text, algorithm.facts)  # type: ignore[attr-defined]

    def noise(release: Release) -> npt.NDArray[np.int64]:
        source = keyed_source(seed.to_bytes(32, "big"), release.name.encode())
        return rounded_gaussian(release.size, release.sigma, source).reshape(release.shape)

    state = central_state(algorithm, spec, PartyRows(texts=rows), noise)
    return algorithm.module(state), algorithm.facts


def train_plaintext(titles: Titles, facts: Facts, adapted: int, seed: int = 1) -> torch.nn.Module:
    """The same module by Adam on batches of 64, without clipping and noise."""
    code, _ = read_code(MODULE, NAME)
    torch.manual_seed(seed)
    module = built(code, facts)
    batch = tensors(code, titles, titles.train, facts)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(wanted, lr=2e-3)
    for _ in range(EPOCHS[adapted]):
        for rows in torch.randperm(len(titles.train)).split(64):
            optimizer.zero_grad()
            code.loss(module, {name: tensor[rows] for name, tensor in batch.items()}, {}, facts).mean().backward()
            optimizer.step()
    return module.eval()


def tensors(code: Any, titles: Titles, rows: npt.NDArray[np.int64], facts: Facts) -> dict[str, torch.Tensor]:
    """The module file's tensors of these titles, stacked."""
    code.remember([titles.texts[row] for row in rows], facts)
    nothing = np.zeros(0, np.int64)
    each = [
        code.example(UserRows(nothing, None, (titles.texts[row],), titles.labels[row : row + 1]), facts) for row in rows
    ]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def predict(module: torch.nn.Module, titles: Titles, facts: Facts) -> Bools:
    """bool[test, labels]: labels of probability .2 or more, and the likeliest."""
    code, _ = read_code(MODULE, NAME)
    batch = tensors(code, titles, titles.test, facts)
    with torch.inference_mode():
        parts = zip(batch["hidden"].split(256), batch["mask"].split(256), strict=True)
        probability = torch.cat([module(hidden, mask) for hidden, mask in parts]).sigmoid().numpy()
    return with_likeliest(probability, THRESHOLD)


def with_likeliest(probability: npt.NDArray[np.float32], threshold: float) -> Bools:
    """bool[n, labels]: what is at least the threshold, and the largest of each row."""
    chosen = probability >= threshold
    chosen[np.arange(len(probability)), probability.argmax(axis=1)] = True
    return np.asarray(chosen, dtype=np.bool_)


def scores(titles: Titles, predicted: Bools) -> dict[str, float]:
    """Micro and macro F1 on the test titles."""
    true = titles.labels[titles.test]
    return {
        f"{kind}_f1": float(f1_score(true, predicted, average=kind, zero_division=0)) for kind in ("micro", "macro")
    }


def run_joint(
    titles: Titles, catalogue: Catalogue, epsilon: float, root: Path, settings: dict[str, float]
) -> tuple[torch.nn.Module, Facts]:
    """Three parties, coordinator and dealer as processes of this machine; returns what they published."""
    from cli import job_client
    from cli.local import LocalConsortium, PartySite
    from veil.identity.credentials import Credentials
    from veil.identity.names import Role
    from veil.trainers.gradient.facts import job_facts
    from veil.trainers.gradient.publication import load_module

    class TextConsortium(LocalConsortium):
        """Parties that hold labelled texts and allow this module, and hold no interactions."""

        def party_config(self, site: PartySite, catalogue: Path) -> dict[str, object]:
            config = super().party_config(site, catalogue)
            config["texts"] = config.pop("data")
            return {**config, "modules": {NAME: str(MODULE)}}

    catalogue.save(root / "catalogue")
    (root / "raw").mkdir()
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (root / "job.toml").write_text(
        f'name = "{NAME}"\nparties = {list(PARTIES)}\n[catalogue]\npath = "catalogue"\n'
        f"[privacy]\nepsilon = {epsilon}\ndelta = {DELTA}\n"
        f'[trainer]\nkind = "gradient"\nmodule = "{NAME}"\nmodule_file = "{MODULE}"\n{lines}'
    )
    columns = {"user": "title_id", "text": "title", "labels": "genres"}
    with TextConsortium(root, PARTIES) as consortium:
        consortium.start_coordinator()
        consortium.start_dealer()
        for party, rows in zip(PARTIES, titles.parties, strict=True):
            source = root / "raw" / f"{party}.csv"
            write_csv(source, titles, rows)
            consortium.start_party(PartySite(party, source, {"columns": columns}), root / "catalogue")
        credentials = Credentials.load(consortium.credentials(Role.OPERATOR))
        desk = job_client.Desk(consortium.address("coordinator"), credentials)
        spec = job_client.plan_job(root / "job.toml", consortium.consortium)
        job = job_client.submit_job(desk, spec)
        for event in job_client.watch_job(desk, job.job_id):
            if event.line:
                print(event.line, file=sys.stderr, flush=True)
    folder = root / f"party-{PARTIES[0]}" / "models" / job.job_id
    module = load_module(folder, credentials.authority_pem, MODULE, catalogue)
    return module, job_facts(spec, spec.trainer, catalogue)  # type: ignore[arg-type]


def write_csv(path: Path, titles: Titles, rows: npt.NDArray[np.int64]) -> None:
    """What one party brings: title_id, title, genres separated by |."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title_id", "title", "genres"])
        for row in rows:
            names = [name for name, own in zip(titles.names, titles.labels[row], strict=True) if own]
            writer.writerow([f"title-{row}", titles.texts[row], "|".join(names)])


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints the report and the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="NAME:FOLDER, for instance ml-1m:FOLDER")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1, help="of noise and sampling, without --joint")
    parser.add_argument("--joint", action="store_true", help="real processes instead of a simulation in one")
    parser.add_argument("--only-private", action="store_true", help="without the models to compare with")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    titles = load_titles(given.data)
    catalogue = label_catalogue(titles.names)
    print(f"{len(titles.train)} titles at {len(PARTIES)} parties, {len(titles.test)} for the report")
    started = time.monotonic()
    if given.joint:
        with tempfile.TemporaryDirectory(prefix="veil-text-") as folder:
            module, facts = run_joint(titles, catalogue, given.epsilon, Path(folder), SETTINGS)
    else:
        spec = plan_job(catalogue, given.epsilon, SETTINGS)
        module, facts = train_private(titles, catalogue, spec, given.seed)
    seconds = time.monotonic() - started
    predicted = predict(module, titles, facts)
    print(classification_report(titles.labels[titles.test], predicted, target_names=titles.names, zero_division=0))
    name = f"private, epsilon {given.epsilon:g}"
    table = {f"LoRA and head, {name}": scores(titles, predicted)}
    if not given.only_private:
        table.update(_compared(titles, catalogue, given.epsilon, given.seed, facts))
    for row, figures in table.items():
        print(f"{row:36} micro F1 {figures['micro_f1']:.3f}   macro F1 {figures['macro_f1']:.3f}")
    print(f"private training took {seconds:.0f} s")
    if given.json:
        document = {"data": given.data.split(":")[0], "epsilon": given.epsilon, "delta": DELTA, "joint": given.joint}
        given.json.write_text(json.dumps({**document, "seconds": seconds, "rows": table}, indent=2) + "\n")


def _compared(
    titles: Titles, catalogue: Catalogue, epsilon: float, seed: int, facts: Facts
) -> dict[str, dict[str, float]]:
    table = {}
    plain = train_plaintext(titles, facts, 1)
    table["LoRA and head, plaintext"] = scores(titles, predict(plain, titles, facts))
    head = {**SETTINGS, "module-adapted": 0.0}
    module, head_facts = train_private(titles, catalogue, plan_job(catalogue, epsilon, head), seed)
    table[f"head alone, private, epsilon {epsilon:g}"] = scores(titles, predict(module, titles, head_facts))
    plain = train_plaintext(titles, head_facts, 0)
    table["head alone, plaintext"] = scores(titles, predict(plain, titles, head_facts))
    share = titles.labels[titles.train].mean(axis=0, dtype=np.float32)
    constant = with_likeliest(np.tile(share, (len(titles.test), 1)), THRESHOLD)
    table["most frequent genres for everyone"] = scores(titles, constant)
    return table


if __name__ == "__main__":
    main()
