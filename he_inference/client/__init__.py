"""The client of a scoring server: what applications import.

Guarantee: names in `__all__` are stable; the files behind them are not. The server imports nothing from here.
"""

from he_inference.client.aio import AsyncScoringClient
from he_inference.client.connection import TokenCredentials, load_credentials, scoring_server
from he_inference.client.fold_in import FoldIn, Items
from he_inference.client.linear import LinearClient
from he_inference.client.query import QueryReport, Recommendation
from he_inference.client.release import ReleasedScores
from he_inference.client.rows import RowScores, score_rows
from he_inference.client.scores import Scores
from he_inference.client.steps import Retries
from he_inference.client.sync import ScoringClient

__all__ = [
    "AsyncScoringClient",
    "FoldIn",
    "Items",
    "LinearClient",
    "QueryReport",
    "Recommendation",
    "ReleasedScores",
    "Retries",
    "RowScores",
    "Scores",
    "ScoringClient",
    "TokenCredentials",
    "load_credentials",
    "score_rows",
    "scoring_server",
]
