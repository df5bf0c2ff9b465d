"""The `progress` logger: hands Dagster's events to whoever listens on the Python logger `headwater.progress`."""

from __future__ import annotations

import logging

import dagster as dg

__all__ = ["LOGGER_NAME", "progress_logger"]

LOGGER_NAME = "headwater.progress"


def _progress_logger(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.DEBUG)
    return logger


progress_logger = dg.LoggerDefinition(
    logger_fn=_progress_logger, description="Events of a run, for a listener in the same process (`headwater run`)."
)
