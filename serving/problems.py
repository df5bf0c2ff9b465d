"""What the API refuses, as RFC 9457 problem details. Every refusal says what was found and what is allowed.

Problem
  ├─ MalformedBody        400   not JSON
  ├─ UnknownModel         404   not in the catalog
  ├─ UnknownCustomers     404   the online store has never seen them; nothing was scored
  ├─ UnknownPath          404
  ├─ WrongMethod          405
  ├─ BodyTooLarge         413   over HEADWATER_MAX_BODY_BYTES
  ├─ WrongContentType     415   not application/json in UTF-8
  ├─ InvalidEntities      422   JSON, but not the request that this endpoint takes
  ├─ NotDeployed          503   in the catalog, but no package or no business time yet
  └─ FeaturesUnavailable  503   no online store, or not what the model needs at this instant
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "BodyTooLarge",
    "FeaturesUnavailable",
    "FieldError",
    "InvalidEntities",
    "MalformedBody",
    "NotDeployed",
    "Problem",
    "UnknownCustomers",
    "UnknownModel",
    "UnknownPath",
    "WrongContentType",
    "WrongMethod",
]

# A body of 1,000 wrong entities would otherwise be answered with 1,000 errors.
MAX_LISTED = 20


@dataclass(frozen=True)
class FieldError:
    """One wrong place in a body: where (`entities[3].customer_id`), what was found, what is allowed."""

    where: str
    found: str
    allowed: str


class Problem(RuntimeError):
    """A refusal with an HTTP status; `extra` are members of the problem document beside the standard ones."""

    status: ClassVar[int]
    kind: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = dict(extra or {})

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the refusal."""
        return {}

    def document(self) -> dict[str, Any]:
        """The RFC 9457 document."""
        return {
            "type": f"urn:headwater:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }


class MalformedBody(Problem):
    """The body is not JSON (NaN and Infinity are not)."""

    status, kind, title = 400, "malformed-body", "The body is not JSON"


class UnknownModel(Problem):
    """The catalog declares no such model."""

    status, kind, title = 404, "unknown-model", "No such model"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        models = sorted(known)
        allowed = ", ".join(models) or "none is declared"
        super().__init__(f"found model {name!r}, allowed is one of: {allowed}", {"models": models})


class UnknownCustomers(Problem):
    """Some customers were never seen by the online store; a partial answer would hide that, so none is scored."""

    status, kind, title = 404, "unknown-customer", "No such customer"

    def __init__(self, customer_ids: Sequence[int], now: str) -> None:
        ids = list(dict.fromkeys(customer_ids))
        shown = ", ".join(str(i) for i in ids[:MAX_LISTED]) + (", ..." if len(ids) > MAX_LISTED else "")
        super().__init__(
            f"found {len(ids)} customer(s) without any event known by {now}: {shown}; nothing was scored, "
            "allowed are customers that the shop has seen",
            {"customer_ids": ids},
        )


class UnknownPath(Problem):
    """No such address."""

    status, kind, title = 404, "unknown-path", "No such address"


class WrongMethod(Problem):
    """The address exists, the method does not."""

    status, kind, title = 405, "wrong-method", "Method not allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"found method {method}, allowed is {allowed}", {"allowed": allowed.split(", ")})
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed}


class BodyTooLarge(Problem):
    """More bytes than the API reads."""

    status, kind, title = 413, "body-too-large", "The body is too large"

    def __init__(self, found: str, limit: int) -> None:
        super().__init__(
            f"found {found}, allowed are at most {limit} bytes (HEADWATER_MAX_BODY_BYTES); send fewer entities",
            {"max_body_bytes": limit},
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}


class WrongContentType(Problem):
    """Not JSON by its own declaration."""

    status, kind, title = 415, "wrong-content-type", "Unsupported content type"


class InvalidEntities(Problem):
    """JSON that is not the request this endpoint takes."""

    status, kind, title = 422, "invalid-entities", "The entities are not valid"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(
            f"{first.where}: found {first.found}, allowed is {first.allowed}{more}",
            {"errors": [vars(e) for e in errors[:MAX_LISTED]], "error_count": len(errors)},
        )


class NotDeployed(Problem):
    """A declared model that cannot answer yet, and what to do about it."""

    status, kind, title = 503, "not-deployed", "The model is not deployed"


class FeaturesUnavailable(Problem):
    """The online features cannot be read as the deployed model needs them."""

    status, kind, title = 503, "features-unavailable", "The features are not available"
