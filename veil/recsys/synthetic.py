"""A data set from nowhere: invented books, invented readers, for a demo on a machine without data.

Guarantee: the same arguments give the same bytes (one seeded generator; nothing secret hangs on it). What makes it a
fair stand-in for real data:

- popularity is Zipf-like: item of rank r has weight (r + shift)^-exponent before tastes;
- tastes are latent: every item is a vector of `FACTORS` numbers around its genres' vectors, every reader one around a
  few genres; a reader meets items with probability proportional to popularity x exp(strength x <reader, item>), without
  replacement, so that a low-rank model finds structure that popularity does not have;
- titles are made of a genre's own words and each item names one or two genres, so that public text and categories tell
  something, but not all, of the latent vectors.

Sampling without replacement in proportion to weights is by exponential races (Efraimidis and Spirakis, 2006): the k
smallest of E_i / w_i, E_i standard exponential.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.recsys.dataset import NEGATIVES, Dataset
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable
from veil.recsys.splits import leave_one_out, sample_negatives

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

USERS, ITEMS, SEED = 30_000, 2_000, 7
PARTY_FRACTIONS = (0.55, 0.30, 0.15)
FACTORS = 12
ZIPF_EXPONENT, ZIPF_SHIFT = 0.9, 8.0
# Standard deviation of log-weights that tastes add, over items, for a typical reader.
TASTE_STRENGTH = 1.6
# Share of an item's latent vector that its genres explain; the rest is its own.
GENRE_SHARE = 0.7
HISTORY_MEDIAN, HISTORY_SPREAD, HISTORY_LEAST, HISTORY_MOST = 22, 0.8, 5, 200
FIRST_SECOND, LAST_SECOND = 1_609_459_200, 1_704_067_200  # 2021 to 2023
_BLOCK_USERS = 1_000

# Genre -> (what stories are about, how they are).
_WORDS: dict[str, tuple[str, str]] = {
    "Crime": ("Detective Murder Alibi Verdict Witness Heist Informant Suspect", "Cold Silent Guilty Unsolved Stolen"),
    "Romance": ("Wedding Kiss Letter Heart Summer Bride Promise Dance", "Tender Secret First Second Parisian"),
    "Science Fiction": (
        "Starship Android Galaxy Colony Orbit Robot Nebula Probe",
        "Quantum Lunar Distant Alien Synthetic",
    ),
    "Fantasy": ("Dragon Wizard Throne Sword Prophecy Elf Kingdom Rune", "Enchanted Ancient Crowned Hidden Golden"),
    "Horror": ("Haunting Vampire Grave Nightmare Cellar Demon Curse Scream", "Bloody Cursed Hollow Whispering Dead"),
    "History": (
        "Empire Emperor Revolution Dynasty Treaty Crusade Republic Siege",
        "Roman Medieval Ottoman Imperial Lost",
    ),
    "Children": ("Bunny Puppy Teddy Rainbow Picnic Kitten Balloon Duckling", "Little Sleepy Happy Magic Curious"),
    "Cooking": ("Kitchen Bread Recipes Soup Baker Spice Pasta Garden", "Simple Slow Italian Homemade Seasonal"),
    "Travel": ("Island Railway Desert Voyage Map Mountain Harbour Road", "Northern Endless Solo Wild Coastal"),
    "War": ("Soldier Battalion Trench Submarine Bomber General Frontline Convoy", "Fallen Western Last Broken Burning"),
    "Comedy": (
        "Uncle Neighbour Parrot Blunder Honeymoon Plumber Cousin Circus",
        "Hilarious Clumsy Accidental Absurd Merry",
    ),
    "Business": (
        "Market Startup Leader Strategy Investor Negotiation Brand Startups",
        "Lean Smart Profitable Bold Digital",
    ),
    "Nature": ("Forest River Whale Birds Ocean Fungi Wolf Insects", "Green Deep Migrating Arctic Untamed"),
    "Sport": ("Goalkeeper Marathon Champion League Boxer Sprint Coach Stadium", "Final Unbeaten Olympic Extra Winning"),
    "Poetry": ("Sonnet Elegy Verses Psalm Nocturne Ode Haiku Refrain", "Blue Fragile Autumn Unspoken Quiet"),
    "Science": (
        "Atom Genome Universe Theorem Brain Evolution Particle Climate",
        "Elegant Hidden Mathematical Curious Cosmic",
    ),
}
GENRES = tuple(_WORDS)


def generate(users: int = USERS, items: int = ITEMS, *, seed: int = SEED, negatives: int = NEGATIVES) -> Dataset:
    """A data set with times; each reader's latest item is held out and `negatives` unmet items are drawn.

    users: 1 to 1,000,000; items: at least 250 (histories have up to 200 items), at most 100,000. The default takes a
    few seconds and gives about 30 interactions a reader. `extra` has `party_of`, int64[users]: the organisation (0, 1
    or 2) of each reader, in shares of `PARTY_FRACTIONS`; each organisation's readers lean towards genres of its own.
    """
    if not (1 <= users <= 1_000_000 and HISTORY_MOST + 50 <= items <= 100_000):
        raise ConfigError(f"got {users} users and {items} items, expected up to 1,000,000 and 250 to 100,000")
    if not 0 <= negatives <= items - HISTORY_MOST - 1:
        raise ConfigError(f"got {negatives} negatives, expected at most {items - HISTORY_MOST - 1}")
    generator = np.random.default_rng(seed)
    genre_vectors = _unit(generator.standard_normal((len(GENRES), FACTORS)))
    genres = _genres_of(items, generator)
    item_vectors = _item_vectors(genres, genre_vectors, generator)
    log_weight = -ZIPF_EXPONENT * np.log(generator.permutation(items) + 1.0 + ZIPF_SHIFT)
    party_of = generator.choice(len(PARTY_FRACTIONS), size=users, p=PARTY_FRACTIONS)
    user_vectors = _user_vectors(party_of, genre_vectors, generator)
    row, column = _meet(user_vectors, item_vectors, log_weight, generator)
    interactions = Interactions.from_pairs(
        row,
        column,
        users=users,
        items=items,
        time=generator.integers(FIRST_SECOND, LAST_SECOND, size=len(row)),
    )
    held = leave_one_out(interactions, order="latest", seed=seed)
    return Dataset(
        name="synthetic",
        train=held.train,
        test_items=held.test_items,
        negatives=sample_negatives(held.train, held.test_items, count=negatives, seed=seed),
        table=_table(genres, generator),
        extra={"party_of": party_of.astype(np.int64)},
    )


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float64)


def _genres_of(items: int, generator: np.random.Generator) -> Int64:
    """int64[items, 2]: main genre and second one, equal where the item has one genre only. Some genres are rare."""
    share = (np.arange(len(GENRES)) + 4.0) ** -0.7
    share /= share.sum()
    main = generator.choice(len(GENRES), size=items, p=share)
    second = generator.choice(len(GENRES), size=items, p=share)
    return np.stack([main, np.where(generator.random(items) < 0.35, second, main)], axis=1).astype(np.int64)


def _item_vectors(genres: Int64, genre_vectors: npt.NDArray[np.float64], generator: np.random.Generator) -> Float32:
    """float32[items, FACTORS], rows of length about sqrt(FACTORS)."""
    explained = _unit(0.65 * genre_vectors[genres[:, 0]] + 0.35 * genre_vectors[genres[:, 1]])
    own = _unit(generator.standard_normal(explained.shape))
    return np.asarray(
        np.sqrt(FACTORS) * (np.sqrt(GENRE_SHARE) * explained + np.sqrt(1 - GENRE_SHARE) * own), dtype=np.float32
    )


def _user_vectors(
    party_of: npt.NDArray[np.int64], genre_vectors: npt.NDArray[np.float64], generator: np.random.Generator
) -> Float32:
    """float32[users, FACTORS], rows of length 1: a reader's three genres, weighted, and something of its own.

    A genre is chosen with an inclination of the reader's organisation, so that organisations' readers differ.
    """
    inclination = np.exp(0.5 * generator.standard_normal((len(PARTY_FRACTIONS), len(GENRES))))
    cumulative = np.cumsum(inclination / inclination.sum(axis=1, keepdims=True), axis=1)[party_of]  # (users, genres)
    mixed = 0.6 * generator.standard_normal((len(party_of), FACTORS)) / np.sqrt(FACTORS)
    for weight in (1.0, 0.6, 0.4):
        drawn = (generator.random((len(party_of), 1)) > cumulative[:, :-1]).sum(axis=1)
        mixed += weight * genre_vectors[drawn]
    return np.asarray(_unit(mixed), dtype=np.float32)


def _meet(
    user_vectors: Float32, item_vectors: Float32, log_weight: npt.NDArray[np.float64], generator: np.random.Generator
) -> tuple[Int64, Int64]:
    """Pairs of user and item number: exponential races, in blocks of readers with histories of like length."""
    users = len(user_vectors)
    length = HISTORY_MEDIAN * np.exp(HISTORY_SPREAD * generator.standard_normal(users))
    length = np.clip(np.rint(length), HISTORY_LEAST, HISTORY_MOST).astype(np.int64)
    order = np.argsort(length, kind="stable")
    rows, columns = [], []
    for start in range(0, users, _BLOCK_USERS):
        block = order[start : start + _BLOCK_USERS]
        tastes = user_vectors[block] @ item_vectors.T  # (block, items), standard deviation about 1 over items
        arrival = generator.standard_exponential(tastes.shape, dtype=np.float32)
        arrival *= np.exp(-(np.float32(TASTE_STRENGTH) * tastes + log_weight.astype(np.float32)))
        most = int(length[block].max())
        first = np.argpartition(arrival, most - 1, axis=1)[:, :most]
        first = np.take_along_axis(first, np.argsort(np.take_along_axis(arrival, first, 1), axis=1), 1)
        taken = np.arange(most) < length[block][:, None]
        rows.append(np.repeat(block, length[block]))
        columns.append(first[taken])
    return np.concatenate(rows), np.concatenate(columns).astype(np.int64)


def _table(genres: Int64, generator: np.random.Generator) -> ItemTable:
    """Ids, titles with a year, and one or two genres."""
    titles, categories = [], []
    year = 2023 - np.floor(45 * generator.random(len(genres)) ** 2).astype(np.int64)
    luck = generator.random((len(genres), 4))
    for number, (main, second) in enumerate(genres.tolist()):
        nouns, moods = (words.split() for words in _WORDS[GENRES[main]])
        other = _WORDS[GENRES[second]][0].split()
        noun, noun_2 = nouns[int(luck[number, 0] * len(nouns))], other[int(luck[number, 1] * len(other))]
        mood = moods[int(luck[number, 2] * len(moods))]
        form = int(luck[number, 3] * 4)
        name = (
            f"The {mood} {noun}" if form == 0 or noun == noun_2
            else f"{mood} {noun} and {noun_2}" if form == 1
            else f"The {noun} of the {mood} {noun_2}" if form == 2
            else f"{noun_2} and the {mood} {noun}"
        )  # fmt: skip
        titles.append(f"{name} ({year[number]})")
        categories.append(tuple(dict.fromkeys((GENRES[main], GENRES[second]))))
    return ItemTable(
        ids=tuple(f"book-{number:05d}" for number in range(len(genres))),
        titles=tuple(titles),
        categories=tuple(categories),
    )
