"""A model directory becomes an engine, or an error that says what is wrong with it."""

import json
import queue
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.defaults import GenerationDefaults
from engine.errors import InvalidConfig, ModelError
from engine.load import LoadedModel, LoadOptions, load, model_directory
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from tests.tiny_model import FAMILIES, tiny_model_dir

PROMPT = "The engine reads a batch, writes"
FEW = LoadOptions(num_blocks=8, threads=1)


@pytest.fixture(scope="module", params=FAMILIES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("llama"))


def answer(model: LoadedModel, params: SamplingParams) -> tuple[list[int], str]:
    """Run one request on the engine's own thread; the token ids and the text that came."""
    delivered: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    with model.open_engine(delivered.put) as engine:
        engine.submit(GenerateRequest("one", tuple(model.tokenizer.encode(PROMPT)), params))
        outputs: list[Output] = []
        while not outputs or outputs[-1].finish is None:
            outputs += delivered.get(timeout=60)
    return [token for output in outputs for token in output.token_ids], "".join(output.text for output in outputs)


def test_a_loaded_model_answers_as_transformers_does(path: Path) -> None:
    model = load(path, LoadOptions(threads=1, num_blocks=64))
    token_ids, text = answer(model, SamplingParams(max_tokens=24, temperature=0.0))

    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    prompt = torch.tensor([model.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, eos_token_id=None
        )
    assert token_ids == expected[0, prompt.shape[1] :].tolist()
    assert text == model.tokenizer.decode(token_ids)


def test_the_pool_has_the_blocks_that_were_asked_for(llama: Path) -> None:
    assert load(llama, LoadOptions(threads=1, num_blocks=7)).runner.num_blocks == 7
    assert load(llama, LoadOptions(threads=1, num_blocks=7, dtype="bfloat16")).runner.num_blocks == 7
    assert load(llama, LoadOptions(threads=1, kv_bytes=1 << 20)).runner.num_blocks > 7


def test_the_context_can_be_made_shorter_and_not_longer(llama: Path) -> None:
    assert load(llama, LoadOptions(threads=1, max_model_len=100, num_blocks=8)).runner.max_model_len == 100
    assert load(llama, LoadOptions(threads=1, max_model_len=10_000, num_blocks=8)).runner.max_model_len == 512


def test_the_fingerprint_is_the_contents(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    other = tiny_model_dir(tmp_path / "other", seed=1)

    assert load(copy, FEW).fingerprint == load(llama, FEW).fingerprint
    assert load(other, FEW).fingerprint != load(llama, FEW).fingerprint
    half = LoadOptions(threads=1, num_blocks=8, dtype="bfloat16")
    assert load(llama, half).fingerprint != load(llama, FEW).fingerprint


def test_an_engine_knows_the_fingerprint_of_its_model(llama: Path) -> None:
    model = load(llama, FEW)
    engine = model.open_engine(lambda outputs: None, EngineConfig(max_sequences=3, max_batch_tokens=64))

    assert engine.scheduler.pool.num_blocks == 8
    assert engine._config.fingerprint == model.fingerprint
    assert engine._config.max_sequences == 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (LoadOptions(device="tpu"), "device: expected auto, cpu, cuda, cuda:1 or emulator, got 'tpu'"),
        (LoadOptions(device="cpu", dtype="float8"), "dtype: expected auto, float32, bfloat16, got 'float8'"),
    ],
)
def test_options_out_of_range_are_refused(llama: Path, options: LoadOptions, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        load(llama, options)


def test_what_is_wrong_with_a_directory_is_said(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        load(tmp_path / "nowhere")

    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    (broken / "generation_config.json").write_text(json.dumps({"eos_token_id": 100_000}))
    with pytest.raises(ModelError, match="eos_token_id: expected ids from 0 to"):
        load(broken, FEW)
    (broken / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(ModelError, match="temperature: expected a number, got 'hot'"):
        load(broken, FEW)
    (broken / "model.safetensors").unlink()
    (broken / "generation_config.json").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(broken, FEW)


def test_a_name_is_a_path_unless_it_is_the_demos() -> None:
    assert model_directory("some/where") == Path("some/where")
    assert model_directory("demo").parts[-3:] == ("engine", "demo", "model")


def test_defaults_are_the_makers_and_off_where_they_say_nothing(tmp_path: Path) -> None:
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults()
    given = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults(0.6, 20, 0.95, 0.0, 1.05)
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": -1, "top_p": None}))
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults()
