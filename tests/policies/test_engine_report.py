"""An engine's own troubles: which are a reason to leave it alone, and that each is told once."""

import pytest

from policies.breaker import Cause
from policies.engine_report import EngineCounts, EngineReport, ReportTerms


@pytest.mark.fault_row(39)
@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("failed_steps", Cause.DEVICE_ERROR),
        ("memory_shortages", Cause.OUT_OF_MEMORY),
        ("row_errors", Cause.NON_FINITE),
    ],
)
def test_what_befalls_half_of_all_steps_is_a_cause_once(trouble: str, cause: Cause) -> None:
    report = EngineReport()

    told = [report.look(1000.0 + at / 10, EngineCounts(steps=2 * at, **{trouble: at})) for at in range(1, 20)]

    assert [each for each in told if each] == [cause]
    assert told.index(cause) == 2  # the third


@pytest.mark.fault_row(37)
def test_one_poisonous_request_among_many_is_no_cause() -> None:
    report = EngineReport()

    told = [report.look(1000.0 + at / 10, EngineCounts(steps=50 * at, failed_steps=at)) for at in range(1, 100)]

    assert set(told) == {None}


def test_after_it_was_over_it_is_told_again() -> None:
    report = EngineReport(ReportTerms(window_s=1.0))
    assert report.look(1000.0, EngineCounts(steps=3, failed_steps=3)) is Cause.DEVICE_ERROR
    assert report.look(1000.1, EngineCounts(steps=6, failed_steps=6)) is None
    assert report.look(1010.0, EngineCounts(steps=100, failed_steps=6)) is None

    assert report.look(1020.0, EngineCounts(steps=103, failed_steps=9)) is Cause.DEVICE_ERROR


@pytest.mark.parametrize(
    ("trouble", "cause"), [("stalls", Cause.STALLED), ("preemption_storms", Cause.PREEMPTION_STORM)]
)
def test_what_the_engine_itself_calls_by_name_counts_at_once(trouble: str, cause: Cause) -> None:
    report = EngineReport()

    assert report.look(1000.0, EngineCounts(steps=1000, **{trouble: 1})) is cause
    assert report.look(1000.1, EngineCounts(steps=1001, **{trouble: 1})) is None


@pytest.mark.parametrize("terms", [{"window_s": 0.0}, {"share": 0.0}, {"share": 1.5}, {"least": 0}])
def test_terms_that_mean_nothing_are_refused(terms: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ReportTerms(**terms)  # type: ignore[arg-type]
