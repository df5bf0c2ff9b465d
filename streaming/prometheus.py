"""The change stream's numbers, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from streaming.stream_status import StreamStatus

__all__ = ["prometheus_text"]


def prometheus_text(status: StreamStatus) -> str:
    """The numbers in Prometheus' text format."""
    lines: list[str] = []

    def family(name: str, meaning: str, samples: Sequence[tuple[Mapping[str, str], float | None]]) -> None:
        lines.extend((f"# HELP headwater_{name} {meaning}", f"# TYPE headwater_{name} gauge"))
        for labels, value in samples:
            if value is not None:
                shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
                lines.append(f"headwater_{name}{f'{{{shown}}}' if shown else ''} {value}")

    family("log_problem", "Whether the change log cannot be asked.", [({}, float(bool(status.log_problem)))])
    sources = [({"system": s.system}, s) for s in status.sources]
    family("capture_running", "Whether a connector runs.", [(at, float(s.running)) for at, s in sources])
    family("capture_sent_rows", "Records sent since it last connected.", [(at, s.sent_rows) for at, s in sources])
    family("capture_rows_per_second", "Records sent in the last second.", [(at, s.rows_per_s) for at, s in sources])
    family("capture_position", "In the server's log.", [(at, s.log_position) for at, s in sources])
    family("capture_last_event_seconds", "When that was, since 1970.", [(at, _s(s.last_event_at)) for at, s in sources])
    family("capture_lag_rows", "Rows not sent, estimated.", [(at, s.lag_rows) for at, s in sources])
    family("capture_lag_bytes", "Server's log not confirmed by us.", [(at, s.lag_bytes) for at, s in sources])
    family("capture_lag_seconds", "Since all there was had been sent.", [(at, s.lag_s) for at, s in sources])
    family("capture_retained_bytes", "Server's log kept for us.", [(at, s.retained_bytes) for at, s in sources])
    family("capture_limit_bytes", "At which it stops keeping it.", [(at, s.limit_bytes) for at, s in sources])
    family("capture_bounded", "Whether there is such a limit.", [(at, float(s.bounded)) for at, s in sources])
    family(
        "capture_problem",
        "Whether something is wrong.",
        [(at, float(bool(s.problem or s.refused))) for at, s in sources],
    )
    consumers = [({"group": c.group, "topic": c.topic}, c) for c in status.consumers]
    places = [({**at, "partition": p}, offset) for at, c in consumers for p, offset in c.position.items()]
    family("consumer_position", "The next offset to read.", places)
    family("consumer_last_event_seconds", "As capture's.", [(at, _s(c.last_event_at)) for at, c in consumers])
    family("consumer_rows_per_second", "Landed within the last minute.", [(at, c.rows_per_s) for at, c in consumers])
    family("lag_rows", "Records not read.", [(at, c.lag_rows) for at, c in consumers])
    family("lag_bytes", "Bytes not read.", [(at, c.lag_bytes) for at, c in consumers])
    family("lag_seconds", "Age of the first record not read.", [(at, c.lag_s) for at, c in consumers])
    family("landed_rows", "Rows of the table.", [(at, c.rows) for at, c in consumers])
    family("quarantined_rows", "Rows in quarantine.", [(at, c.quarantined_rows) for at, c in consumers])
    family("consumer_problem", "Whether something is wrong.", [(at, float(bool(c.problem))) for at, c in consumers])
    waiting = [({"table": q.table}, sum(q.waiting.values())) for q in status.quarantines]
    family("quarantine_waiting", "Rows in quarantine that nothing has settled since.", waiting)
    dead = [({"system": d.system, "table": t}, n) for d in status.dead_letters for t, n in d.waiting.items()]
    family("dead_letters", "Records that wait to be put through again.", dead)
    return "\n".join(lines) + "\n"


def _s(instant: datetime | None) -> float | None:
    return instant.replace(tzinfo=UTC).timestamp() if instant else None
