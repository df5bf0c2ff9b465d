"""What a feature service returns, compiled: names, types, stored columns, time to live. Plain data, no Feast.

Training, batch scoring and serving all read features through a plan, and compute what grows with time by the one
function `elapsed_days`. How a plan is compiled from Feast's definitions is in ml/features.py.

Errors: FeatureError
          ├─ UnknownFeatureError     a reference that no feature view has
          ├─ UnknownServiceError     no feature service of that name
          ├─ EntityRowsError         entity rows without the columns or types that a join needs
          ├─ OnlineStoreError        the online store lacks what a plan needs
          │    └─ BeforeHorizonError an instant before the oldest that the online store still answers exactly
          └─ UnsupportedSourceError  a data source that our stores do not read
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

__all__ = [
    "BeforeHorizonError",
    "Dtype",
    "EntityRowsError",
    "FeatureError",
    "FeaturePlan",
    "OnlineStoreError",
    "PlannedFeature",
    "PlannedView",
    "UnknownFeatureError",
    "UnknownServiceError",
    "UnsupportedSourceError",
    "elapsed_days",
]

Dtype = Literal["int64", "float64", "string", "bool"]
US_PER_DAY = 86_400_000_000


class FeatureError(RuntimeError):
    """Features could not be had."""


class UnknownFeatureError(FeatureError):
    """A reference that no feature view has."""


class UnknownServiceError(FeatureError):
    """No feature service of that name."""


class EntityRowsError(FeatureError):
    """Entity rows without the columns or types that a join needs."""


class OnlineStoreError(FeatureError):
    """The online store lacks what a plan needs."""


class BeforeHorizonError(OnlineStoreError):
    """An instant before the oldest that the online store still answers exactly."""


class UnsupportedSourceError(FeatureError):
    """A data source that our stores do not read."""


def elapsed_days(at_us: Any, since_us: Any) -> Any:
    """Real days from `since_us` to `at_us`, both microseconds since 1970 UTC; integers or integer arrays of one shape.

    The only definition of what grows with time: offline store, online store and serving all call it.
    """
    return (at_us - since_us) / US_PER_DAY


@dataclass(frozen=True)
class PlannedView:
    """One feature view: values are null once the latest event is more than `ttl_us` microseconds old (None: never)."""

    name: str
    ttl_us: int | None


@dataclass(frozen=True)
class PlannedFeature:
    """One feature; `column` is what the view stores. `elapsed_since` is set when the value is the days since it."""

    name: str
    view: str
    dtype: Dtype
    column: str
    elapsed_since: str | None = None


@dataclass(frozen=True)
class FeaturePlan:
    """A feature service, compiled: its features in the service's order."""

    service: str
    entity: str
    views: tuple[PlannedView, ...]
    features: tuple[PlannedFeature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @cached_property
    def ttl_us(self) -> dict[str, int | None]:
        """Time to live in microseconds by view; None: unlimited."""
        return {v.name: v.ttl_us for v in self.views}

    def to_json(self) -> str:
        """Canonical JSON: the same plan always gives the same text."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> FeaturePlan:
        """Raises FeatureError when `text` is not a plan."""
        try:
            plan = json.loads(text)
            return cls(
                service=plan["service"],
                entity=plan["entity"],
                views=tuple(PlannedView(**v) for v in plan["views"]),
                features=tuple(PlannedFeature(**f) for f in plan["features"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FeatureError(f"this is not a feature plan ({error!r}): {text[:200]!r}") from None

    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
