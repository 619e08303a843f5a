"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="actnetformer_server", registry=self.registry)

        def name(rest: str) -> str:
            return f"actnetformer_server_{rest}"

        self.requests = Counter(
            name("requests"), "Requests by path and HTTP status", ["path", "status"], registry=self.registry
        )
        self.refusals = Counter(name("refusals"), "Requests without an answer, by reason", ["reason"], registry=self.registry)
        self.bytes = Counter(name("upload_bytes"), "Bytes of uploads that arrived whole", registry=self.registry)
        self.uploads = Gauge(name("uploads"), "Uploads that are arriving", registry=self.registry)
        self.waiting = Gauge(name("waiting"), "Requests that wait for their answer", registry=self.registry)
        self.seconds = Histogram(
            name("seconds"), "Time of a request's parts", ["part"], buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            name("batch_videos"), "Videos or windows scored together (without Ray)", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )  # fmt: skip

    def render(self) -> bytes:
        """Returns the text that Prometheus reads."""
        return generate_latest(self.registry)
