"""What the API measures about itself, for Prometheus: counted as requests end, or read from the gateway at a scrape.

Each application has a registry of its own, so that two of them in one process do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.answers import oldest_events
from serving.prediction_log import LogHealth, Predictions

__all__ = ["Metrics", "ModelSample", "Sample"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Clients choose the method: anything else would be a label value of their making.
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


# Doubles the exposition with a creation time for each series, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ModelSample:
    """One model at the instant of a scrape; `version` None when it is not deployed."""

    model: str
    version: str | None
    failed_loads: int
    stale: bool


@dataclass(frozen=True)
class Sample:
    """The gateway at the instant of a scrape."""

    models: tuple[ModelSample, ...]
    log: LogHealth


class Metrics:
    """Counters of requests and predictions, and what `sample` reports at a scrape."""

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "headwater_requests",
            "Finished HTTP requests.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "headwater_request_seconds", "Time to answer.", ("route",), buckets=_BUCKETS_S, registry=self._registry
        )
        self._predictions = Counter(
            "headwater_predictions", "Predictions served.", ("model", "version"), registry=self._registry
        )
        self._feature_age = Gauge(
            "headwater_feature_age_seconds",
            "Business time since the oldest features of the last answer were last changed by an event.",
            ("model", "view"),
            registry=self._registry,
        )
        self._registry.register(_GatewayCollector(sample))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One finished request."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def served(self, made: Predictions) -> None:
        """One answer."""
        self._predictions.labels(made.model, str(made.version)).inc(len(made.predictions))
        for view, at in oldest_events(made).items():
            if at is not None:
                self._feature_age.labels(made.model, view).set((made.served_at - at).total_seconds())

    def text(self) -> bytes:
        """The exposition, in CONTENT_TYPE."""
        return generate_latest(self._registry)


class _GatewayCollector(Collector):
    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Metric]:
        sample = self._sample()
        version = GaugeMetricFamily(
            "headwater_model_info", "1 for the version that serves.", labels=("model", "version")
        )
        stale = GaugeMetricFamily(
            "headwater_model_stale", "1 while the newest package cannot be used.", labels=("model",)
        )
        failed = CounterMetricFamily("headwater_model_load_failures", "Packages refused.", labels=("model",))
        for model in sample.models:
            if model.version is not None:
                version.add_metric((model.model, str(model.version)), 1)
            stale.add_metric((model.model,), float(model.stale))
            failed.add_metric((model.model,), model.failed_loads)
        yield from (version, stale, failed, *_log_families(sample.log))


def _log_families(health: LogHealth) -> Iterable[Metric]:
    counts = (
        ("appended", health.appended, "Served predictions in the change log."),
        ("lost", health.lost, "Served predictions that never reached the change log."),
        ("append_failures", health.failed_appends, "Appends that the change log refused."),
    )
    for name, value, text in counts:
        yield CounterMetricFamily(f"headwater_prediction_log_{name}", text, value=value)
    yield GaugeMetricFamily(
        "headwater_prediction_log_pending", "Served predictions to be logged.", value=health.pending
    )
    yield GaugeMetricFamily("headwater_prediction_log_up", "1 while the log accepts.", value=float(health.healthy))
