"""What is told of admission: who waits and who was sent away, and how full each upstream is; read when scraped."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.call import Model
from gateway.vacancy import Vacancy


class AdmissionNumbers:
    """The numbers of all queues and upstreams."""

    def __init__(self, vacancy: Vacancy, models: Mapping[str, Model]) -> None:
        self._vacancy = vacancy
        self._upstreams = dict.fromkeys(upstream for model in models.values() for upstream in model.upstreams)

    def families(self) -> Iterator[Metric]:
        """Yield what there is to tell."""
        waiting, shed = self._vacancy.num_waiting, self._vacancy.num_shed
        yield GaugeMetricFamily("penstock_requests_waiting", "Requests that wait for room.", value=waiting)
        about = "Requests told at once that they would wait too long."
        yield CounterMetricFamily("penstock_requests_shed", about, value=shed)
        in_flight = GaugeMetricFamily("penstock_upstream_in_flight", "Attempts under way.", labels=["upstream"])
        limit = GaugeMetricFamily(
            "penstock_upstream_limit",
            "How many attempts it is given at a time, where that is bound.",
            labels=["upstream"],
        )
        for upstream in self._upstreams:
            room = upstream.room()
            in_flight.add_metric([upstream.name], room.in_flight)
            if room.slots is not None:
                limit.add_metric([upstream.name], room.slots + room.in_flight)
        yield from (in_flight, limit)
