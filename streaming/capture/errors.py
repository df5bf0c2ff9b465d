"""What can go wrong while capturing, and what follows from it.

Errors: CaptureError
          ├─ Retryable   a connection was lost, a server restarts: try again, with growing pauses
          └─ Halt        going on would lose or falsify changes: stop, and say what a person must do
"""

from __future__ import annotations

__all__ = ["CaptureError", "Halt", "Retryable"]


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
