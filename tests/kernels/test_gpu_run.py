"""`make gpu`, rehearsed in the emulator: every part runs, and a part that fails hides no other."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.gpu import kernel_tests
from bench.gpu.__main__ import Part, keep, parts, run, table
from bench.gpu.report import Figure

MEASURING = ("versions", "attention", "steps", "small")


def test_every_measuring_part_runs_and_tells_its_figures() -> None:
    outcomes = [run(part) for part in parts("emulator") if part.name.startswith(MEASURING)]

    assert [outcome.status for outcome in outcomes] == [0] * len(MEASURING)
    assert all(outcome.figures for outcome in outcomes)


def test_a_file_of_tests_that_fails_or_hangs_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bodies = {"good": "pass", "hangs": "__import__('time').sleep(60)", "wrong": "assert 1 == 2"}
    for name, body in bodies.items():
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}_chosen():\n    {body}  # device: Device\n")
    (tmp_path / "test_elsewhere.py").write_text("raise SystemExit\n")
    monkeypatch.setattr(kernel_tests, "LIMIT_S", 8)

    assert kernel_tests.main("chosen", str(tmp_path)) == 2

    told = [line.split(",")[0] for line in capfd.readouterr().out.splitlines()]

    assert told[-3:] == ["test_good.py: ok", "test_hangs.py: FAILED (124)", "test_wrong.py: FAILED (1)"]
    assert "E   assert 1 == 2" in told


def test_all_parts_together_stay_within_nine_minutes() -> None:
    assert sum(part.limit_s for part in parts("cuda")) <= 540


def test_a_part_that_fails_or_hangs_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    figures = '[{"name": "speed", "value": 2.0, "unit": "m/s", "goal": 3, "below": false}]'
    outcomes = [
        run(Part("first", ("-c", f"print('Card 7, sm_90a'); print('RESULT {figures}')"), 20)),
        run(Part("broken", ("-c", "raise SystemExit(3)"), 20)),
        run(Part("hangs", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), 2)),
    ]
    path = keep(outcomes, tmp_path, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))

    assert [outcome.status for outcome in outcomes] == [0, 3, 124]
    assert outcomes[0].figures == [Figure("speed", 2.0, "m/s", 3)]
    assert outcomes[2].last_lines == ["begun"]
    assert path == tmp_path / "card-7" / "2026-01-02-0304.json"
    assert [each["status"] for each in json.loads(path.read_text())] == [0, 3, 124]
    assert "MISSED" in table(outcomes)
    assert "broken: FAILED (3)" in table(outcomes)
