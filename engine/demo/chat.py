"""Lay a conversation out as text: the chat template, in ChatML with tools in the Hermes manner.

The template is shipped in `tokenizer_config.json`, where every server finds it; here it is rendered the way
Hugging Face does it (`trim_blocks`, `lstrip_blocks`, a `tojson` that neither sorts nor escapes).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.demo.exchange import Json, Message, Tool

BEGIN, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (STOP, BEGIN, END)
MARKUP_TOKENS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{%- for part in content -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- if messages and messages[0]['role'] in ('system', 'developer') -%}
{%- set system, turns = text(messages[0]['content']), messages[1:] -%}
{%- else -%}
{%- set system, turns = '', messages -%}
{%- endif -%}
{%- if system or tools -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools -%}
{{- ('\\n' if system else '') + 'You may call these functions:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'tool' -%}
{{- '<tool_response>\\n' + text(message['content']) + '\\n</tool_response>' -}}
{%- else -%}
{{- text(message['content']) -}}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] or call -%}
{{- '\\n' if message['content'] or not loop.first -}}
{{- '<tool_call>\\n{"name": ' + (function['name'] | tojson) + ', "arguments": ' -}}
{{- function['arguments'] if function['arguments'] is string else (function['arguments'] | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def _to_json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _compiled() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE)


def render(messages: Sequence[Message], tools: Sequence[Tool] = (), *, open_turn: bool = False) -> str:
    """The conversation as the network reads it; `open_turn` ends it where the assistant's next answer begins."""
    return _compiled().render(messages=list(messages), tools=list(tools) or None, add_generation_prompt=open_turn)
