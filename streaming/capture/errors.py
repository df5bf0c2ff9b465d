"""What can go wrong while capturing, and what follows from it.

Errors: CaptureError
          ├─ Retryable   a connection was lost, a server restarts: try again, with growing pauses
          └─ Halt        going on would lose or falsify changes: stop, and say what a person must do
               └─ AnotherServer   its history is not the one captured so far: a person may accept it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["AnotherServer", "CaptureError", "Halt", "Retryable", "sift"]


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


def sift(names: Sequence[str], check: Callable[[Sequence[str]], object]) -> tuple[list[str], dict[str, Halt]]:
    """The tables that pass the check, and why each of the others does not. Raises Halt when there is none that does.

    `check` raises Halt that names all that is wrong with these tables.
    """
    try:
        check(names)
    except Halt:
        refused: dict[str, Halt] = {}
        for name in names:
            try:
                check([name])
            except Halt as error:
                refused[name] = error
        if len(refused) == len(names):
            raise
        return [name for name in names if name not in refused], refused
    return list(names), {}
