"""The only place where asset keys, groups and kinds are spelled.

A key is `(layer, subject, name)`: what a thing is, never how or where it is made. The same key is the asset's name in
Dagster (`raw/shop/orders`), the table's name in SQL (`raw.shop.orders`) and its folder in the lake.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["LAYERS", "TABLE_LAYERS", "Key"]

LAYERS = (
    "stream",
    "raw",
    "quarantine",
    "staging",
    "marts",
    "features",
    "models",
    "deployments",
    "predictions",
    "monitoring",
)
# Layers whose assets are tables that `headwater sql` reads.
TABLE_LAYERS = ("raw", "quarantine", "staging", "marts", "features", "models", "predictions", "monitoring")

_PART = re.compile(r"[a-z][a-z0-9_]*")


class Key(NamedTuple):
    """An asset's identity. `Key.parse` accepts slashes or dots."""

    layer: str
    subject: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read `raw/shop/orders` or `raw.shop.orders`; raises ValueError naming what is allowed."""
        parts = re.split(r"[/.]", text)
        if len(parts) != 3 or parts[0] not in LAYERS or not all(_PART.fullmatch(p) for p in parts):
            raise ValueError(
                f"asset key {text!r}: allowed is layer/subject/name in lower case, layer one of {', '.join(LAYERS)}"
            )
        return cls(*parts)

    @property
    def path(self) -> list[str]:
        return list(self)

    @property
    def slashed(self) -> str:
        return "/".join(self)

    @property
    def dotted(self) -> str:
        return ".".join(self)

    @property
    def group(self) -> str:
        return f"{self.layer}_{self.subject}"

    def __str__(self) -> str:
        return self.slashed


def stream(system: str, table: str) -> Key:
    """The change stream of one captured table."""
    return Key("stream", system, table)


def raw(system: str, table: str) -> Key:
    """The append-only history of one captured table."""
    return Key("raw", system, table)


def quarantine(system: str, table: str) -> Key:
    """Changes of one captured table that broke its contract, with the reason."""
    return Key("quarantine", system, table)


def cdc_topic(system: str, table: str) -> str:
    """The change log's topic for one captured table."""
    return f"cdc.{system}.{table}"


def schemas(system: str) -> Key:
    """Every version of the captured tables' columns, and from where in the source's history it holds."""
    return Key("monitoring", system, "schemas")


def served_topic(model: str) -> str:
    """The change log's topic for the predictions that a model's endpoint has served."""
    return f"predictions.{model}.served"


def training_set(model: str) -> Key:
    return Key("models", model, "training_set")


def candidate(model: str) -> Key:
    return Key("models", model, "candidate")


def champion(model: str) -> Key:
    return Key("models", model, "champion")


def endpoint(model: str) -> Key:
    return Key("deployments", model, "endpoint")


def scores(model: str) -> Key:
    return Key("predictions", model, "scores")


def served(model: str) -> Key:
    return Key("predictions", model, "served")


def drift(model: str) -> Key:
    return Key("monitoring", model, "drift")


def answered_cause(model: str) -> str:
    """The ledger's entry of the cause that a model was last retrained for."""
    return f"{candidate(model)}/answered_cause"
