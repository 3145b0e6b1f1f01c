"""`python -m engine generate` prints answers on stdout, everything else on stderr, and tells by its status."""

import io
from pathlib import Path

import pytest

from engine.__main__ import main
from tests.tiny_model import tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_dir(tmp_path_factory.mktemp("model"), hidden_size=32, max_positions=128))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["generate", "--threads", "1", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_answer_is_streamed_and_a_seed_repeats_it(capsys: pytest.CaptureFixture[str], model: str) -> None:
    arguments = ("--model", model, "--prompt", "The engine", "--max-tokens", "12", "--seed", "7", "--ignore-eos")
    status, out, err = run(capsys, *arguments)

    assert status == 0
    assert out.strip()
    assert "12 generated" in err
    assert "ended by: length" in err
    assert run(capsys, *arguments)[1] == out


def test_several_answers_are_printed_apart(capsys: pytest.CaptureFixture[str], model: str) -> None:
    status, out, _ = run(capsys, "--model", model, "--prompt", "a", "--n", "2", "--max-tokens", "4", "--seed", "1")

    assert status == 0
    assert "--- 1 of 2\n" in out
    assert "--- 2 of 2\n" in out


def test_a_chat_goes_through_the_template_and_a_text_does_not(capsys: pytest.CaptureFixture[str], model: str) -> None:
    arguments = ("--model", model, "--prompt", "a", "--max-tokens", "1")

    assert run(capsys, *arguments)[2].startswith("1 prompt tokens")
    chat = run(capsys, *arguments, "--chat")[2]
    system = run(capsys, *arguments, "--system", "be brief")[2]
    assert int(chat.split()[0]) > 1
    assert int(system.split()[0]) > int(chat.split()[0])


def test_a_prompt_may_come_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ab"))

    assert run(capsys, "--model", model, "--prompt", "-", "--max-tokens", "1")[2].startswith("2 prompt tokens")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--prompt", ""), "the prompt has no token"),
        (("--prompt", "word " * 200), "context length is 128"),
        (("--prompt", "a", "--temperature", "-1"), "temperature: expected 0 to 100, got -1.0"),
        (("--prompt", "a", "--n", "0"), "n: expected at least 1, got 0"),
        (("--prompt", "a", "--dtype", "int4"), "dtype: expected auto"),
    ],
)
def test_a_mistake_is_named_on_stderr(
    capsys: pytest.CaptureFixture[str], model: str, arguments: tuple[str, ...], why: str
) -> None:
    status, out, err = run(capsys, "--model", model, *arguments)

    assert (status, out) == (1, "")
    assert why in err


def test_a_directory_that_is_none_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = run(capsys, "--model", str(tmp_path / "x"), "--prompt", "a")

    assert status == 1
    assert str(tmp_path / "x") in err
