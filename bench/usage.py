"""What a process has used so far, as Linux counts it: CPU time and peak memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "usage_of"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU seconds (user and system, children that have ended included) and peak resident memory in MB (10^6)."""

    cpu_s: float
    peak_rss_mb: float


def usage_of(pid: int) -> Usage:
    """Of a running process. Raises ProcessLookupError."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    if "VmHWM:" not in status:
        raise ProcessLookupError(f"process {pid} has ended")
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    return Usage(sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S, peak_kib * 1024 / 1e6)
