"""A hostile or broken template ends in an error, soon. Work is counted, not timed, so these promises are exact."""

import time

import pytest

from engine.errors import TemplateError
from engine.text.sandbox import Limits
from engine.text.shield import Shield
from engine.text.template import ChatTemplate

GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(80) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x %s }}"


def render(source: str, **limits: float) -> str:
    bounds = Limits(**{"max_steps": 20_000, "max_chars": 100_000, "max_seconds": 60.0} | limits)  # type: ignore[arg-type]
    return "".join(ChatTemplate({"default": source}, {}, Shield([]), limits=bounds).render([]))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(100000) %}{% endfor %}",
        "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if false %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% set y %}{% for i in range(9999) %}0123456789abcdef{% endfor %}{% endset %}",
        "{% set x = 'a' * 1000 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
    ],
)
def test_loops_and_macros_end_even_if_they_print_nothing(source: str) -> None:
    with pytest.raises(TemplateError, match=r"steps|characters|Range too big|recursion"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{{ 10**(10**9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=99999999) }}",
        "{{ '{:>999999999}'.format_map({}) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'.zfill(10**9) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ (1).to_bytes(10**9, 'big') }}",
        "{% set x = 'a' * 9999 %}{{ x | replace('a', x) }}",
        "{% set x = 'a' * 9999 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 9999 %}{{ [x] | map('replace', 'a', x) | list }}",
        "{% set x = 'a' * 9999 %}{{ range(9999) | join(x) }}",
        "{% set x = 'a' * 9999 %}{{ x.join(range(9999) | map('string')) }}",
        "{{ ('\n' * 9999) | indent(9999) }}",
        "{{ [1] | tojson(indent=10**9) }}",
        GROW % ("'aaaa'", "ns.x ~ ns.x", "| length"),
        GROW % ("'aaaa'", "ns.x + ns.x", "| length"),
        GROW % ("[1]", "[ns.x, ns.x]", ""),
        GROW % ("[1]", "[ns.x, ns.x]", "| tojson"),
        GROW % ("[1]", "[ns.x, ns.x]", "| string"),
        GROW % ("[1]", "[ns.x, ns.x]", "~ ''"),
        GROW % ("7", "ns.x * ns.x", ""),
        GROW % ("7", "ns.x ** 8", ""),
    ],
)
def test_a_long_value_is_refused_before_it_is_made(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def test_processor_time_is_bounded() -> None:
    ticks = iter(range(10**6))
    template = ChatTemplate(
        {"default": "{% for i in range(9999) %}{% endfor %}"},
        {},
        Shield([]),
        limits=Limits(max_seconds=5),
        clock=lambda: float(next(ticks)),
    )
    with pytest.raises(TemplateError, match="longer than 5"):
        template.render([])


@pytest.mark.parametrize("name", ["lipsum", "self", "environment", "config"])
def test_nothing_but_what_chat_templates_need_is_at_hand(name: str) -> None:
    with pytest.raises(TemplateError):
        render("{{ " + name + "() }}")


def test_a_template_cannot_reach_its_budget() -> None:
    assert render("{{ _budget }}{{ budget }}") == ""
    with pytest.raises(TemplateError, match="steps"):
        render("{% set _step = 1 %}{% set budget = none %}{% for i in range(99999) %}{% endfor %}")


def test_a_long_chat_fits_the_bounds_that_hold_by_default() -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template = ChatTemplate({"default": source}, {}, Shield(["<|im_start|>"]), clock=time.thread_time)
    chat = [{"role": "user", "content": "word " * 100}] * 5000

    assert len(template.render(chat)[0]) > 2_500_000
