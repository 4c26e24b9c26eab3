"""What the server counts for Prometheus. No label holds anything that a request chose."""

import prometheus_client as prometheus

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


class Telemetry:
    """The counters of one server."""

    def __init__(self):
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter(
            "kmura_requests", "Requests that were answered.", ("route", "status"), registry=registry
        )
        self.seconds = prometheus.Histogram(
            "kmura_request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused = prometheus.Counter(
            "kmura_refused", "Requests that were refused before any work.", ("reason",), registry=registry
        )
        self.images = prometheus.Counter(
            "kmura_images", "Images, by what became of them.", ("model", "result"), registry=registry
        )
        self.batch = prometheus.Histogram(
            "kmura_batch_images",
            "Images per step of a model.",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.step = prometheus.Histogram(
            "kmura_batch_seconds", "Duration of a step of a model.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.queue = prometheus.Gauge("kmura_queue_images", "Images that wait or are worked on.", registry=registry)
        self.held = prometheus.Gauge("kmura_held_bytes", "Bytes of request bodies in memory.", registry=registry)
        self.version = prometheus.Gauge(
            "kmura_model_version", "Version of a model that is served.", ("model",), registry=registry
        )
        self.loads = prometheus.Counter(
            "kmura_model_loads", "Versions that were loaded or refused.", ("model", "result"), registry=registry
        )

    def text(self) -> bytes:
        """Returns the counters in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
