"""What can go wrong while capturing, and what follows from it.

Errors: CaptureError
          ├─ Retryable   a connection was lost, a server restarts: try again, with growing pauses
          └─ Halt        going on would lose or falsify changes: stop, and say what a person must do
               └─ AnotherServer   its history is not the one captured so far: a person may accept it
"""

from __future__ import annotations

__all__ = ["AnotherServer", "CaptureError", "Halt", "Retryable"]


class CaptureError(RuntimeError):
    """Capturing stopped."""


class Retryable(CaptureError):
    """The same may succeed later; nothing is lost by waiting."""


class Halt(CaptureError):
    """A person must decide. `runbook` is a page of docs/runbooks, without its suffix."""

    def __init__(self, found: str, remedy: str, runbook: str) -> None:
        super().__init__(f"{found}. {remedy} (docs/runbooks/{runbook}.md)")
        self.found = found
        self.remedy = remedy
        self.runbook = runbook


class AnotherServer(Halt):
    """The server's history is not the one captured so far; `--accept-identity` begins a new one."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"this is another server than the one captured so far: {found}",
            "Point HEADWATER_SHOP_URL at the former one, or accept the new one with `--accept-identity`: every table "
            "is then read again",
            "another_server",
        )
