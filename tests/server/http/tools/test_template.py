from __future__ import annotations

import json

import jinja2
import pytest

from server.http.tools.template import probe

HERMES = """{% if tools %}Tools: {% for t in tools %}{{ t | tojson }}{% endfor %}
{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}"""
CODER = HERMES.replace(
    """{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}""",
    """<function={{ c.function.name }}>
{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>
{{ v }}
</parameter>
{% endfor %}</function>""",
)
LLAMA = """{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}
{%- if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise("one call at a time") }}{% endif -%}
{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}
{%- else %}{{ m.role }}: {{ m.content }}{% endif %}
{% endfor %}"""
MISTRAL = """{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}
{%- if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise("nine") }}{% endif -%}
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"},
{%- endfor %}]{% elif m.role == "system" %}{{ m.content }}{% else %}[X]{{ m.content }}{% endif %}{% endfor %}"""
ARGS = """{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] -%}
[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"""
NONE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
RAISES = (
    """{% for m in messages %}{% if m.role == 'tool' %}{{ raise('no') }}{% endif %}{{ m.content }}{% endfor %}"""
)
QUOTING = HERMES.replace("c.function.arguments | tojson", "c.function.arguments | tojson | tojson")


def rendering(source):
    def refuse(reason):
        raise ValueError(reason)

    env = jinja2.Environment()
    env.filters["tojson"] = lambda value: json.dumps(value)
    template = env.from_string(source)
    return lambda messages, tools: template.render(messages=messages, tools=tools, **{"raise": refuse})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (HERMES, ("hermes", True, True, True)),
        (CODER, ("coder", True, True, True)),
        (LLAMA, ("llama", True, True, False)),
        (MISTRAL, ("mistral", True, True, True)),
        (ARGS, ("args", True, True, True)),
        (NONE, ("json", False, False, False)),
        (RAISES, ("json", False, False, False)),
        (QUOTING, ("json", True, False, False)),
    ],
)
def test_a_probe_finds_the_format_and_what_the_template_shows(source, expected):
    found = probe(rendering(source))
    assert (found.format.name, found.tools, found.calls, found.several) == expected
