"""The benchmark measures the same work on both sides: every arm gives the same answers."""

from pathlib import Path

import pytest

from engine import bench

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return bench.write_random_model(tmp_path / "tiny", TINY, seed=3)


def test_every_arm_is_run_and_answers_alike(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bench.main(["--model", str(tiny), "--requests", "3", "--rounds", "1", "--threads", "1"])
    out = capsys.readouterr().out

    assert status == 0
    assert out.count("3 of 3 answers equal to ours") == 4
    assert out.count("ratio to its best arm") == 2
    assert "own share of a step at 32 sequences" in out


def test_a_directory_that_is_no_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bench.main(["--model", str(tmp_path), "--no-peer"])

    assert status == 1
    assert "config.json: no such file" in capsys.readouterr().err


def test_the_workload_is_seeded_and_within_its_bounds() -> None:
    requests = bench.workload(200, vocab_size=50, seed=1)

    assert requests == bench.workload(200, vocab_size=50, seed=1)
    assert requests != bench.workload(200, vocab_size=50, seed=2)
    assert {16 <= len(r.prompt_ids) <= 512 and 16 <= r.num_tokens <= 256 for r in requests} == {True}
    assert all(0 <= token < 50 for r in requests for token in r.prompt_ids)
