"""Bound: what is counted, what is estimated, and what does not fit the model or the policy."""

from collections.abc import AsyncGenerator

import pytest

from gateway.call import Call, ChatPrompt, Event, Operation, PromptEncoder, Reply, Request, TextPrompt, TokenCount
from gateway.errors import BadRequest, ContextTooLong
from gateway.scope import Scope
from gateway.stages.bound import Bound
from policies.account import Account
from policies.bucket import Kind, Limit
from policies.holder import Rule
from policies.tenant import UNLIMITED, OutputRule, Tenant, Terms
from tests.gateway.conftest import model
from tests.rig.in_process import InProcess

CHAT = ChatPrompt([{"role": "user", "content": "hi"}])
COUNTED = Account("acme", tokens=(Rule(Limit("acme tokens", Kind.BUCKET, 1000), input=1, output=1),))


class Words:
    """A tokenizer whose tokens are words, and a template that adds two."""

    def __init__(self, max_context: int | None = 10) -> None:
        self.max_context = max_context
        self.salts: list[bytes] = []

    async def encode(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[tuple[int, ...], ...]:
        self.salts.append(salt)
        if isinstance(prompt, ChatPrompt):
            words = sum(len(str(message.get("content")).split()) for message in prompt.messages)
            return ((7,) * (words + 2),)
        return tuple((7,) * len(str(each).split()) for each in prompt.prompts)

    async def count(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[int, ...]:
        return tuple(map(len, await self.encode(prompt, salt)))


async def empty() -> AsyncGenerator[Event, None]:
    return
    yield


async def answer(call: Call) -> Reply:
    return Reply(200, {}, empty())


def call(
    body: bytes = b"{}",
    *,
    prompt: ChatPrompt | TextPrompt = CHAT,
    max_tokens: int | None = None,
    encoder: Words | None = None,
    takes_ids: bool = True,
    terms: Terms = UNLIMITED,
    **settings: object,
) -> Call:
    request = Request(Operation.CHAT, "m", prompt, max_tokens=max_tokens)
    asked = Call("id", "/v1/chat/completions", 0.0, body, {}, request, 1e9, Scope())
    asked.tenant = Tenant("somebody", b"salt")
    asked.terms = terms
    asked.model = model("m", InProcess(takes_ids=takes_ids), encoder=encoder, **settings)
    return asked


async def counted(asked: Call) -> TokenCount:
    await Bound()(asked, answer)
    return asked.tokens


def test_the_encoder_of_these_tests_is_one_as_far_as_they_go() -> None:
    assert set(vars(Words)) & set(vars(PromptEncoder)) >= {"encode", "count"}


# What is counted


async def test_the_engine_gets_the_ids_that_were_counted() -> None:
    assert await counted(call(max_tokens=4, encoder=Words())) == TokenCount(3, True, 4, ((7, 7, 7),))


async def test_counting_is_told_whose_prompt_it_is() -> None:
    ids, counts = Words(), Words()
    await counted(call(encoder=ids))
    await counted(call(encoder=counts, takes_ids=False))

    assert ids.salts == counts.salts == [b"salt"]


async def test_nothing_is_tokenised_where_the_bytes_decide() -> None:
    words = Words()
    tokens = await counted(call(b"x" * 8, max_tokens=2, encoder=words, takes_ids=False, max_context=10))

    assert words.salts == []
    assert tokens == TokenCount(2, False, 2)


async def test_what_the_bytes_do_not_decide_is_counted_and_the_ids_are_not_kept() -> None:
    tokens = await counted(call(b"x" * 9, max_tokens=2, encoder=Words(), takes_ids=False, max_context=10))

    assert tokens == TokenCount(3, True, 2)


@pytest.mark.parametrize("terms", [Terms(COUNTED), Terms(Account("acme"), max_input=1000)])
async def test_what_a_policy_counts_is_counted_though_its_bytes_would_fit(terms: Terms) -> None:
    tokens = await counted(call(b"x", max_tokens=2, encoder=Words(), takes_ids=False, max_context=10, terms=terms))

    assert tokens == TokenCount(3, True, 2)


async def test_without_a_tokenizer_the_count_is_an_estimate_and_the_upstream_decides() -> None:
    assert await counted(call(b"x" * 101, max_tokens=50, max_context=10)) == TokenCount(26, False, 50)
    assert await counted(call(b"x" * 101, bytes_per_token=2.5, terms=Terms(COUNTED))) == TokenCount(41, False)


async def test_ids_need_no_tokenizer_to_be_counted() -> None:
    prompt = TextPrompt(((1, 2, 3), (4, 5)))

    assert await counted(call(b"x" * 100, prompt=prompt)) == TokenCount(5, True)
    assert await counted(call(b"x" * 100, prompt=TextPrompt(((1, 2, 3), "text")))) == TokenCount(25, False)


# What fits the model


async def test_an_answer_without_a_limit_gets_the_room_that_is_left() -> None:
    assert (await counted(call(encoder=Words()))).output == 7


async def test_an_answer_without_a_limit_is_held_to_the_models() -> None:
    assert (await counted(call(encoder=Words(), max_output=5))).output == 5


async def test_more_than_the_models_output_is_refused_with_both_numbers() -> None:
    with pytest.raises(BadRequest, match=r"6.*5") as caught:
        await counted(call(max_tokens=6, encoder=Words(), max_output=5))

    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("words", "max_tokens", "fits"), [(4, 4, True), (4, 5, False), (7, None, True), (8, None, False)]
)
async def test_prompt_and_answer_fit_the_context_to_the_token(words: int, max_tokens: int | None, fits: bool) -> None:
    prompt = ChatPrompt([{"role": "user", "content": "x " * words}])
    asked = call(prompt=prompt, max_tokens=max_tokens, encoder=Words())

    if fits:
        await counted(asked)
        return
    with pytest.raises(ContextTooLong) as caught:
        await counted(asked)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "10 tokens" in error.message
    assert str(words + 2) in error.message


async def test_the_longest_of_several_prompts_decides() -> None:
    with pytest.raises(ContextTooLong, match="3 in the prompt"):
        await counted(call(prompt=TextPrompt(("a b", "a", "a b c")), max_tokens=8, encoder=Words()))


async def test_a_tokenizer_without_a_context_bounds_nothing() -> None:
    tokens = await counted(call(encoder=Words(None), takes_ids=False, max_tokens=10**6))

    assert tokens == TokenCount(3, True, 10**6)


# What fits the policy


@pytest.mark.parametrize("takes_ids", [True, False])
async def test_input_is_held_to_the_policys_cap_exactly(takes_ids: bool) -> None:
    def asked(cap: int) -> Call:
        return call(encoder=Words(), takes_ids=takes_ids, terms=Terms(Account("acme"), max_input=cap))

    assert (await counted(asked(3))).input == 3
    with pytest.raises(ContextTooLong, match=r"at most 2 input tokens.*resulted in 3 tokens") as caught:
        await counted(asked(2))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "input_too_long", "messages")


async def test_an_estimate_is_held_to_the_policys_cap_and_called_one() -> None:
    terms = Terms(Account("acme"), max_input=25)

    assert (await counted(call(b"x" * 100, terms=terms))).input == 25
    with pytest.raises(ContextTooLong, match=r"at most 25 input tokens.*about 26 tokens"):
        await counted(call(b"x" * 101, terms=terms))


@pytest.mark.parametrize(
    ("rule", "asked", "expected"),
    [
        (OutputRule(), None, (None, False)),
        (OutputRule(), 50, (50, False)),
        (OutputRule(default=20), None, (20, True)),
        (OutputRule(default=20), 50, (50, False)),
        (OutputRule(default=20, cap=10), None, (10, True)),
        (OutputRule(cap=30), None, (30, True)),
        (OutputRule(cap=30), 30, (30, False)),
        (OutputRule(cap=30, clamp=True), 31, (30, True)),
        (OutputRule(default=200), None, (100, True)),
        (OutputRule(cap=200), 100, (100, False)),
    ],
)
async def test_output_is_the_callers_wish_within_what_the_policy_says(
    rule: OutputRule, asked: int | None, expected: tuple[int | None, bool]
) -> None:
    most = 100 if expected[0] is not None else None
    tokens = await counted(call(max_tokens=asked, terms=Terms(Account("acme"), output=rule), max_output=most))

    assert (tokens.output, tokens.imposed) == expected


async def test_a_wish_beyond_the_cap_is_refused_with_both_numbers_unless_it_is_clamped() -> None:
    with pytest.raises(BadRequest, match=r"too large: 31\..*at most 30 ") as caught:
        await counted(call(max_tokens=31, terms=Terms(Account("acme"), output=OutputRule(cap=30))))

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "max_tokens", "output_too_long")


async def test_a_policys_default_takes_the_room_there_is_and_a_clamped_wish_has_to_fit() -> None:
    default = Terms(Account("acme"), output=OutputRule(default=20))
    clamped = Terms(Account("acme"), output=OutputRule(cap=8, clamp=True))

    assert (await counted(call(encoder=Words(), terms=default))).output == 7
    with pytest.raises(ContextTooLong, match="11 tokens"):
        await counted(call(encoder=Words(), max_tokens=9, terms=clamped))
