"""What the demo model's text promises: it follows from a seed, and no evaluation leaks into it."""

from random import Random

import pytest

from engine.demo import corpus, facts, split, toolcalls
from engine.demo.chat import render
from engine.demo.exchange import Exchange
from engine.demo.split import Split

OTHERS = (Split.VALIDATION, Split.HELD_OUT)


@pytest.fixture(scope="module")
def trained() -> list[Exchange]:
    rng = Random(7)
    return [exchange for _ in range(4000) for exchange in corpus.conversation(rng)[0]]


def test_the_evaluation_set_has_at_least_a_hundred_requests_of_each_kind() -> None:
    kinds = [example.kind for example in corpus.held_out()]

    assert len(kinds) >= 500
    assert all(kinds.count(kind) >= 100 for kind in corpus.KINDS)


def test_the_evaluation_set_is_always_the_same() -> None:
    first = corpus.held_out()
    corpus.held_out.cache_clear()

    assert first == corpus.held_out()


def test_no_request_is_evaluated_twice() -> None:
    prompts = [example.prompt() for example in corpus.held_out()]

    assert len(set(prompts)) == len(prompts)


def test_a_document_follows_from_seed_and_number() -> None:
    assert [corpus.document(3, index) for index in range(50)] == [corpus.document(3, index) for index in range(50)]
    assert corpus.document(3, 0) != corpus.document(4, 0)


@pytest.mark.parametrize("other", OTHERS)
def test_every_value_belongs_to_the_split_it_is_used_in(trained: list[Exchange], other: Split) -> None:
    apart = corpus.exchanges_of(other, 140)

    assert {split.split_of(value) for exchange in apart for value in exchange.values} == {other}
    assert {split.split_of(value) for exchange in trained for value in exchange.values} == {Split.TRAIN}


@pytest.mark.parametrize("other", OTHERS)
def test_facts_are_evaluated_in_phrasings_that_were_never_trained_on(trained: list[Exchange], other: Split) -> None:
    apart = {exchange.phrasing for exchange in corpus.exchanges_of(other, 140) if exchange.kind == facts.KIND}

    assert apart
    assert not apart & {exchange.phrasing for exchange in trained}


def test_no_fact_is_asked_in_one_phrasing_by_two_splits() -> None:
    for relation in facts.RELATIONS:
        asked = [_plain(template) for each in Split for template in relation.ask.of(each)]

        assert len(set(asked)) == len(asked), relation.name


def _plain(text: str) -> str:
    return text.lower().strip(" .?!")


def test_no_evaluated_request_occurs_in_the_training_text(trained: list[Exchange]) -> None:
    asked = {_plain(str(exchange.messages[0]["content"])) for exchange in trained}
    evaluated = {_plain(str(example.messages[0]["content"])) for example in corpus.held_out()}

    assert not asked & evaluated


def test_a_call_is_expected_as_the_template_prints_it() -> None:
    call = toolcalls.call("get_time", {"city": "Oakhaven"})

    text = toolcalls.call_text("get_time", {"city": "Oakhaven"})

    assert render([call]) == f"<|im_start|>assistant\n{text}<|im_end|>\n"


def test_a_sort_that_never_reaches_a_split_is_an_error() -> None:
    with pytest.raises(LookupError, match="no age in 2000 belongs to held_out"):
        split.draw(Random(0), Split.HELD_OUT, "age", lambda rng: "x")
