"""What counting a prompt costs: from a request's body to its ids, and what the event loop feels of it meanwhile.

    python -m bench.tokens [--seconds 5]

The tokenizer is a byte-level BPE of 32,000 tokens with Llama 3's pattern, learnt from Python's own library in a few
seconds; the prompts are from there too. CPU is the whole process's, median of the rounds: the JSON, the template,
looking up, encoding, and the ids as the engine takes them. *known*: the same prompt again. *95 % known*: the prompt up
to there was seen before. The loop's lag is how late a timer of a millisecond comes while 200 kB prompts, each of them
new, are counted one after another, beside the same loop with nothing to do.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import uvloop
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from engine.text.shield import Shield
from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from gateway.call import Request
from gateway.prompts import ModelPrompts
from gateway.protocols.chat_request import decode_chat

SIZES = (100, 1_000, 8_000, 100_000)
LONG_BYTES = 200_000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each lag measurement")
    chosen = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as the gateway sets it
    sys.setswitchinterval(0.0005)
    texts = sources()
    tokenizer = learn(texts)
    text = "\n".join(texts[300:])
    uvloop.run(report(tokenizer, text, chosen.seconds))


def sources() -> list[str]:
    """Read Python's own library."""
    files = sorted(Path(os.__file__).parent.glob("*.py")) + sorted(Path(os.__file__).parent.glob("*/*.py"))
    return [file.read_text("utf-8", "replace") for file in files[:600]]


def learn(texts: list[str]) -> Tokenizer:
    """Learn a tokenizer; takes a few seconds."""
    core = Core(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, show_progress=False, special_tokens=list(SPECIAL), initial_alphabet=alphabet
    )
    core.train_from_iterator(texts[:300], trainer)
    return Tokenizer(core, named_tokens={}, stop_ids=frozenset())


def fresh(tokenizer: Tokenizer) -> ModelPrompts:
    """Give an encoder that remembers nothing yet."""
    return ModelPrompts(tokenizer, ChatTemplate({"default": CHATML}, {}, Shield(SPECIAL)), None)


def body_of(*texts: str) -> bytes:
    """Write a request whose messages are these."""
    messages = [{"role": "user", "content": text} for text in texts]
    return msgspec.json.encode({"model": "m", "messages": messages})


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Cut a text into messages."""
    for begin in range(0, len(text), size):
        yield text[begin : begin + size]


async def ids_of(prompts: ModelPrompts, body: bytes) -> tuple[int, ...]:
    """Go from a body to ids, as a call to an engine does."""
    request: Request = decode_chat(body)
    (ids,) = await prompts.encode(request.prompt, b"salt of a tenant")
    return ids


async def cost_us(rounds: int, prepare: Callable[[], ModelPrompts], first: bytes | None, body: bytes) -> float:
    """Measure the process's CPU for one body, after another one was seen."""
    spent = []
    for _ in range(rounds):
        prompts = prepare()
        if first is not None:
            await ids_of(prompts, first)
        begun = time.process_time()
        await ids_of(prompts, body)
        spent.append(time.process_time() - begun)
        prompts.close()
    return statistics.median(spent) * 1e6


async def report(tokenizer: Tokenizer, text: str, seconds: float) -> None:
    """Measure everything and print it."""
    chars_per_token = 100_000 / len(tokenizer.encode(text[:100_000]))

    def prepare() -> ModelPrompts:
        return fresh(tokenizer)

    print("CPU from body to ids, ms (median; one message, and for 100,000 tokens also a chat of 200)")
    print(f"{'tokens':>9} {'bytes':>9} {'new':>9} {'known':>9} {'95 % known':>11}")
    for size in SIZES:
        length = int(size * chars_per_token)
        shapes = [(text[:length], text[: length * 95 // 100])]
        bodies = [(body_of(whole), body_of(part)) for whole, part in shapes]
        if size == SIZES[-1]:
            messages = list(pieces_of(text[:length], length // 200))
            bodies.append((body_of(*messages), body_of(*messages[: len(messages) * 95 // 100])))
        for body, part in bodies:
            count = len(await ids_of(prepare(), body))
            rounds = max(9, min(300, 2_000_000 // len(body)))
            costs = [await cost_us(rounds, prepare, before, body) for before in (None, body, part)]
            new, known, grown = (cost / 1e3 for cost in costs)
            print(f"{count:9,} {len(body):9,} {new:9.3f} {known:9.3f} {grown:11.3f}")
    await lags(tokenizer, text, seconds)


async def lags(tokenizer: Tokenizer, text: str, seconds: float) -> None:
    """Print how late the loop is, idle and beside long prompts."""
    print("\nhow late a timer of 1 ms comes, ms")
    print(f"{'':28} {'p50':>7} {'p99':>7} {'worst':>7}  prompts/s")
    prompts = fresh(tokenizer)
    chance = random.Random(7)

    async def nothing() -> None:
        await asyncio.sleep(1)

    async def count() -> None:
        begin = chance.randrange(len(text) - LONG_BYTES)
        await ids_of(prompts, body_of(text[begin : begin + LONG_BYTES]))

    async def hold() -> None:
        begin = chance.randrange(len(text) - LONG_BYTES)
        tokenizer.encode(text[begin : begin + LONG_BYTES])
        await asyncio.sleep(0)

    for name, work in (("idle", nothing), ("200 kB prompts", count), ("the same on the loop", hold)):
        late, done = await lag_beside(work, seconds)
        late.sort()
        p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
        print(f"{name:28} {p50 * 1e3:7.2f} {p99 * 1e3:7.2f} {late[-1] * 1e3:7.2f}  {done / seconds:.1f}")
    prompts.close()


async def lag_beside(work: Callable[[], Awaitable[None]], seconds: float) -> tuple[list[float], int]:
    """Do work again and again, and measure a timer beside it."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    ends = loop.time() + seconds
    done = 0

    async def busy() -> None:
        nonlocal done
        while loop.time() < ends:
            await work()
            done += 1

    task = asyncio.ensure_future(busy())
    clock = time.perf_counter  # the loop's own is rounded to milliseconds
    while loop.time() < ends:
        due = clock() + 0.001
        await asyncio.sleep(0.001)
        late.append(max(0.0, clock() - due))
    await task
    return late, done


if __name__ == "__main__":
    main()
