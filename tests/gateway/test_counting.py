"""Prompts on their way to ids: off the loop where they are long, remembered for their own tenant, told to upstreams."""

import asyncio
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from engine.text.shield import Shield
from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from gateway.assembly import StartError, open_tokenizer, proxied
from gateway.call import ChatPrompt, TextPrompt
from gateway.configuration.config import ModelConfig
from gateway.configuration.loading import Loaded, load
from gateway.counting import CountingThreads
from gateway.errors import BadRequest, Overloaded
from gateway.prompts import SHORT_BYTES, ModelPrompts
from policies.document import DocumentError
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.upstream import Upstream, scripted_upstream
from tests.tiny_model import CHATML, SPECIAL, TEXT, byte_level_tokenizer, write_tokenizer

LONG = TEXT * 8  # more than is encoded on the loop, less than makes a body that is laid out on a thread
HUGE = TEXT * 100


class Gated(Tokenizer):
    """Encodes parts only where somebody else, who must be able to run meanwhile, lets it."""

    def __init__(self) -> None:
        super().__init__(byte_level_tokenizer(), named_tokens={}, stop_ids=frozenset())
        self.gate = threading.Event()
        self.encoded: list[str] = []

    def encode_parts(self, parts: Sequence[str]) -> "list[array[int]]":
        assert self.gate.wait(20)
        self.encoded += parts
        return super().encode_parts(parts)


def prompts_over(tokenizer: Tokenizer, template: str = CHATML) -> ModelPrompts:
    return ModelPrompts(tokenizer, ChatTemplate({"default": template}, {}, Shield(SPECIAL)), 100_000)


def chat(*texts: str) -> ChatPrompt:
    return ChatPrompt([{"role": "user", "content": text} for text in texts])


@pytest.mark.fault_row(36)
@pytest.mark.parametrize(
    "prompt", [chat(LONG), chat(*[LONG] * 3), chat(HUGE), TextPrompt((LONG,)), TextPrompt((HUGE,))]
)
async def test_a_long_prompt_is_encoded_while_the_loop_goes_on(prompt: ChatPrompt | TextPrompt) -> None:
    tokenizer = Gated()
    prompts = prompts_over(tokenizer)
    encoding = asyncio.ensure_future(prompts.count(prompt, b""))
    await asyncio.sleep(0)
    assert not encoding.done()
    tokenizer.gate.set()

    (count,) = await encoding

    assert count == len((await prompts.encode(prompt, b""))[0])
    prompts.close()


@pytest.mark.parametrize("prompt", [chat("short"), TextPrompt(("short", "too")), TextPrompt(((1, 2), (3,)))])
async def test_a_short_prompt_is_encoded_at_once(prompt: ChatPrompt | TextPrompt) -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    counting = prompts_over(tokenizer).count(prompt, b"")

    with pytest.raises(StopIteration):
        counting.send(None)


async def test_a_long_text_is_tokenised_beside_the_loop_to_the_same_ids() -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    prompts = prompts_over(tokenizer)

    for text in ("short", LONG, HUGE):
        for special in (True, False):
            assert await prompts.encode_text(text, b"", special=special) == prompts.tokenize(text, special=special)
    prompts.close()


async def test_a_prompt_that_was_asked_before_is_not_encoded_again_for_its_own_tenant() -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    prompts = prompts_over(tokenizer)

    for prompt in (chat("hello"), chat(LONG), TextPrompt(("hello",))):
        tokenizer.encoded.clear()
        first = await prompts.encode(prompt, b"alice")
        again = await prompts.encode(prompt, b"alice")
        once = len(tokenizer.encoded)
        stranger = await prompts.encode(prompt, b"bob")

        assert first == again == stranger
        assert len(tokenizer.encoded) == 2 * once > 0
    prompts.close()


async def test_prompts_that_look_alike_are_told_apart() -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    prompts = prompts_over(
        tokenizer, "{{ messages[0]['content'] }}|{{ messages[0]['x'] | tojson }}|{{ add_generation_prompt }}"
    )
    alike = [
        ChatPrompt([{"role": "user", "content": "1", "x": x}], add_generation_prompt=opens)
        for x in (1, 1.0, "1", True, None, 2**70, [1], {"1": 1})
        for opens in (True, False)
    ]
    for _ in range(2):
        told = [tuple((await prompts.encode(prompt, b""))[0]) for prompt in alike]

        assert len(set(told)) == len(alike)


async def test_a_template_that_reads_the_clock_is_laid_out_every_time() -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    days = iter(["Monday", "Tuesday"])

    class Calendar:
        def strftime(self, form: str) -> str:
            return next(days)

    template = ChatTemplate({"default": "{{ strftime_now('%A') }}"}, {}, Shield([]), now=Calendar)  # type: ignore[arg-type]
    prompts = ModelPrompts(tokenizer, template, None)
    told = [prompts.detokenize((await prompts.encode(chat("hi"), b""))[0]) for _ in range(2)]

    assert told == ["Monday", "Tuesday"]


async def test_what_is_wrong_with_a_prompt_is_told_from_every_thread() -> None:
    tokenizer = Gated()
    tokenizer.gate.set()
    prompts = prompts_over(tokenizer, "{{ raise_exception('not so') }}")
    wrong = [
        chat("x"),
        chat("x" * (SHORT_BYTES + 1)),
        TextPrompt(("",)),
        TextPrompt((LONG, "")),
        TextPrompt(((99999,),)),
    ]

    for prompt in wrong:
        with pytest.raises(BadRequest):
            await prompts.count(prompt, b"")
    prompts.close()


async def test_more_long_prompts_than_may_wait_are_refused() -> None:
    threads = CountingThreads(max_waiting=2)
    gate = threading.Event()
    waiting = [asyncio.ensure_future(threads.run(lambda: gate.wait(20))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await threads.run(lambda: True)
    gate.set()

    assert await asyncio.gather(*waiting) == [True, True]
    assert await threads.run(lambda: 7) == 7
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "1"})
    threads.close()


async def test_nobody_waits_for_ever() -> None:
    threads = CountingThreads(max_wait_s=0)
    gate = threading.Event()
    with pytest.raises(Overloaded):
        await threads.run(lambda: gate.wait(20))
    gate.set()
    threads.close()


async def test_who_leaves_while_it_waits_is_not_encoded() -> None:
    tokenizer = Gated()
    prompts = prompts_over(tokenizer)
    many = [asyncio.ensure_future(prompts.count(TextPrompt((f"{place} {LONG}",)), b"")) for place in range(20)]
    await asyncio.sleep(0)
    for each in many:
        each.cancel()
    await asyncio.wait(many)
    tokenizer.gate.set()
    await prompts.count(TextPrompt((LONG,)), b"")
    prompts.close()

    assert len({part[:2] for part in tokenizer.encoded if part[:2].strip().isdigit()}) <= 4  # those that ran already


# A tokenizer for what HTTP upstreams serve


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with scripted_upstream() as server:
        yield server


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    encoder = open_tokenizer("m", write_tokenizer(tmp_path), 200)
    async with running(model("m", http_upstream(upstream.url), encoder=encoder, max_context=200)) as serving:
        yield serving


async def test_a_configured_tokenizer_counts_for_http_upstreams(gateway: Gateway, upstream: Upstream) -> None:
    messages = [{"role": "user", "content": "The quick brown fox " * 8}]
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        told = (await client.post("/tokenize", json={"model": "m", "messages": messages})).json()
        fits = await client.post("/v1/chat/completions", json={"model": "m", "messages": messages, "max_tokens": 5})
        long = await client.post("/v1/chat/completions", json={"model": "m", "messages": messages * 9, "max_tokens": 5})

    assert told["max_model_len"] == 200
    assert fits.status_code == 200
    assert gateway.records[-2].input_tokens == told["count"]
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert len(upstream.seen) == 1


async def test_a_proxied_model_takes_its_tokenizer_from_the_configuration(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "there")
    config = ModelConfig(tokenizer="there", bytes_per_token=3.5, max_context=100)

    served = await proxied("m", config, {}, Loaded(None, tmp_path))  # type: ignore[arg-type]

    assert served.encoder is not None
    assert (served.encoder.max_context, served.bytes_per_token) == (100, 3.5)
    assert await served.encoder.count(TextPrompt(("The quick brown fox",)), b"") == (
        len(byte_level_tokenizer().encode("The quick brown fox").ids),
    )
    served.encoder.close()


def test_a_directory_without_a_tokenizer_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"model m: .*tokenizer\.json is missing"):
        open_tokenizer("m", tmp_path, None)


@pytest.mark.parametrize(
    ("model_lines", "problem"),
    [
        ("upstreams: [u], tokenizer: nowhere", "models.m.tokenizer: got 'nowhere', expected a directory that exists"),
        ("engine: {path: demo}, tokenizer: .", "models.m.tokenizer: has no meaning beside `engine`"),
        ("upstreams: [u], bytes_per_token: 0.1", "models.m.bytes_per_token"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, model_lines: str, problem: str) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(f"models: {{m: {{{model_lines}}}}}\nupstreams: {{u: {{url: http://h}}}}\n")

    with pytest.raises(DocumentError) as caught:
        load(file)
    assert any(problem in str(each) for each in caught.value.problems)
