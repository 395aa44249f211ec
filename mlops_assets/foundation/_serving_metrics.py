"""What a service counts, for Prometheus.

What belongs here: the metrics that every service has, in a registry of its own. What does not: the metrics of one
system, which it makes with `ServiceMetrics.counter`.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlops_assets.foundation._serving_models import ModelHolder

if TYPE_CHECKING:
    from prometheus_client import Counter
    from prometheus_client.metrics_core import Metric

_PREFIX = "mlops_assets_"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_MESSAGE_CHARACTERS = 200


class ServiceMetrics:
    """Requests, their times, refusals, and the models that answer them.

    Labels hold names that the service itself chose, never text of a caller: their number is bounded.
    """

    def __init__(self, holders: Mapping[str, ModelHolder[Any]]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Models(holders))
        self._requests = Counter(
            f"{_PREFIX}http_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{_PREFIX}http_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["method", "route"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._refusals = Counter(
            f"{_PREFIX}http_refusals", "Answers that were an error, by its code.", ["code"], registry=self.registry
        )
        self.in_flight = Gauge(f"{_PREFIX}http_in_flight", "Requests under way.", registry=self.registry)

    def counter(self, name: str, documentation: str, labels: Sequence[str]) -> "Counter":
        """Return a new counter of a system's own: ``mlops_assets_<name>_total``."""
        from prometheus_client import Counter

        return Counter(f"{_PREFIX}{name}", documentation, labels, registry=self.registry)

    def answered(self, method: str, route: str, status: int, seconds: float, code: str) -> None:
        """Count one answer."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        if code:
            self._refusals.labels(code).inc()

    def text(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Models:
    """The holders as they are when somebody looks, so that no version of the past lingers as a label."""

    def __init__(self, holders: Mapping[str, ModelHolder[Any]]) -> None:
        self._holders = holders

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        name = f"{_PREFIX}model"
        info = GaugeMetricFamily(f"{name}_info", "The model that answers.", labels=["model", "version", "sha256"])
        age = GaugeMetricFamily(f"{name}_age_seconds", "Seconds since the model became current.", labels=["model"])
        swaps = CounterMetricFamily(f"{name}_swaps", "Models exchanged for another.", labels=["model"])
        failures = CounterMetricFamily(f"{name}_load_failures", "Attempts to load that failed.", labels=["model"])
        standing = GaugeMetricFamily(
            f"{name}_load_error", "1 while the last attempt to load failed.", labels=["model", "message"]
        )
        for model, holder in self._holders.items():
            status = holder.status()
            swaps.add_metric([model], status.swaps)
            failures.add_metric([model], status.failures)
            if status.identity is not None and status.loaded_at is not None:
                info.add_metric([model, status.identity.version, status.identity.sha256], 1)
                since = status.identity.since or status.loaded_at
                age.add_metric([model], (datetime.now(UTC) - since).total_seconds())
            if status.error is not None:
                standing.add_metric([model, status.error[:_MESSAGE_CHARACTERS]], 1)
        yield from (info, age, swaps, failures, standing)
