"""Shows a run as it goes: one line when an asset is done, from Dagster's own events; nothing is guessed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Progress"]


@dataclass
class Progress(logging.Handler):
    """Turns Dagster's log records into lines; `emit_line` gets each one. Also keeps what failed, for the summary."""

    emit_line: Callable[[str], None]
    total: int
    done: int = 0
    failures: list[str] = field(default_factory=list)
    _started: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(logging.DEBUG)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", None)
        event = meta.get("dagster_event") if isinstance(meta, dict) else None
        if event is not None:
            self._show(event.event_type_value, event)

    def _show(self, kind: str, event: Any) -> None:
        step = event.step_key
        if kind == "STEP_START":
            self._started[step] = time.perf_counter()
            self.emit_line(f"         {step} ...")
        elif kind == "STEP_SUCCESS":
            self._finish(step, "ok  ")
        elif kind == "STEP_SKIPPED":
            self._finish(step, "skip")
        elif kind == "STEP_FAILURE":
            self._finish(step, "FAIL")
            if _error_class(event) != "DagsterAssetCheckFailedError":  # each failed check has said why
                self.failures.append(_reason(step, event))
        elif kind == "ASSET_CHECK_EVALUATION":
            self._check(event.event_specific_data)

    def _finish(self, step: str, verdict: str) -> None:
        self.done += 1
        seconds = time.perf_counter() - self._started.pop(step, time.perf_counter())
        self.emit_line(f"{self.done:>3}/{self.total} {verdict} {step}  {seconds:.1f} s")

    def _check(self, check: Any) -> None:
        if not check.passed:
            message = check.description or ""
            self.emit_line(f"         {check.severity.value}: {check.asset_key.to_user_string()} {message}".rstrip())
            if check.severity.value == "ERROR":
                self.failures.append(f"{check.asset_key.to_user_string()}: {message}")


def _error_class(event: Any) -> str | None:
    error = event.event_specific_data.error
    return error.cls_name if error is not None else None


def _reason(step: str, event: Any) -> str:
    """The innermost message: Dagster wraps what a step raised."""
    error = event.event_specific_data.error
    description = getattr(getattr(event.event_specific_data, "user_failure_data", None), "description", None)
    while error is not None and error.cause is not None:
        error = error.cause
    return f"{step}: {description or (error.message.strip() if error else 'failed')}"
