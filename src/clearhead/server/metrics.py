"""What `/metrics` reports, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clearhead.inference.scheduler import LoadReport

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters, gauges and histograms of one application.

    Args:
        load: returns what runs and waits now; None while the model loads.
    """

    def __init__(self, load: Callable[[], LoadReport | None]) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram("time_to_first_token_seconds", "From a request's start to its first token.")
        self.latency = self._histogram("request_latency_seconds", "From a request's start to its last token.")
        self.requests = Counter(
            "clearhead_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        gauges: dict[str, tuple[str, Callable[[LoadReport], int]]] = {
            "requests_running": ("Texts that are being generated.", lambda now: now.running),
            "requests_waiting": ("Texts that wait for others to end.", lambda now: now.waiting),
            "prefix_cache_tokens": ("Tokens that the prefix cache keeps.", lambda now: now.prefix_tokens),
            "prompt_tokens_total": ("Tokens of prompts so far.", lambda now: now.prompt_tokens),
            "cached_prompt_tokens_total": ("Of these, tokens that did not run.", lambda now: now.cached_prompt_tokens),
            "generated_tokens_total": ("Tokens generated so far.", lambda now: now.generated_tokens),
        }
        for name, (what, read) in gauges.items():
            gauge = Gauge(f"clearhead_{name}", what, registry=self.registry)
            gauge.set_function(lambda read=read: _value(load(), read))  # type: ignore[misc]

    def page(self) -> bytes:
        """Return the current values."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"clearhead_{name}", what, buckets=_SECONDS, registry=self.registry)


def _value(now: LoadReport | None, read: Callable[[LoadReport], int]) -> float:
    return 0.0 if now is None else float(read(now))
