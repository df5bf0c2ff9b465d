"""What every declaration is made of: a frozen, strict spec with rules, and the kinds of names in it.

A field says for itself what it may be; what must fit together is in the `rules` of its spec, each of which names the
field to look at. How a refusal reads is decided in `catalog.refusals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from catalog.problems import Finding

__all__ = ["MISFIT", "FeatureReference", "Name", "Owner", "Rule", "Spec", "TableKey", "repeated"]

MISFIT = "misfit"
"""pydantic's `type` of an error that a rule found."""

Rule = Callable[[], Iterator[Finding]]


def _text(pattern: str, words: str) -> Any:
    """Text of a pattern, with the words that say which."""
    return Field(pattern=pattern, json_schema_extra={"words": words})


Name = Annotated[str, _text(r"^[a-z][a-z0-9_]*$", "a name of lower-case letters, digits and _, a letter first")]
Owner = Annotated[
    str, _text(r"^(team:[a-z][a-z0-9_-]*|[^@\s]+@[^@\s]+\.[^@\s]+)$", "team:name (in lower case) or an e-mail address")
]
TableKey = Annotated[str, _text(r"^[a-z]+/[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$", "an asset key such as marts/sales/orders")]
FeatureReference = Annotated[
    str, _text(r"^[a-z][a-z0-9_]*:[a-z][a-z0-9_]*$", "view:feature such as activity:txn_count_7d")
]


class Spec(BaseModel):
    """A declaration or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def rules(self) -> tuple[Rule, ...]:
        """What must fit together here; each rule yields what does not, at its place below this spec."""
        return ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        found = [finding for rule in self.rules() for finding in rule()]
        if found:
            # Several errors, each with its own place: a plain ValueError would be one, without a place.
            raise ValidationError.from_exception_data(type(self).__name__, [_misfit(finding) for finding in found])
        return self


def _misfit(finding: Finding) -> InitErrorDetails:
    error = PydanticCustomError(MISFIT, "{text}", {"text": finding.text})
    return InitErrorDetails(type=error, loc=finding.loc, input=None)


def repeated(names: Sequence[str]) -> list[int]:
    """The positions of names that were there before."""
    return [position for position, name in enumerate(names) if name in names[:position]]
