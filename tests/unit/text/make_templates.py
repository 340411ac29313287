#!/usr/bin/env python3
"""Chat templates rendered by transformers: writes templates/goldens.json, or compares templates with a tool.

  make_templates.py                                 needs transformers and jinja2
  make_templates.py --tool BUILD/tests/template_tool [--template FILE-or-tokenizer_config.json ...]
The second form renders with the tool too and names the first difference: the committed templates, the snippets, and
the templates given.
"""
import argparse
import json
import pathlib
import subprocess

from transformers.utils.chat_template_utils import render_jinja_template, _compile_jinja_template

HERE = pathlib.Path(__file__).resolve().parent / "templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "Weather of a place.\nToday's only: \"now\" & <here> é",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "a city"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}},
            "any": {"oneOf": [{"type": "string", "nullable": True}, {"type": "boolean"}]}}}}},
    {"type": "function", "function": {
        "name": "add", "description": "", "parameters": {"type": "object", "properties": {
            "a": {"type": ["number", "null"], "default": 1.0}, "b": {"type": "number", "maximum": 1e300}}},
        "return": {"type": "number"}}},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"place": "Genève", "days": [1, 2]}}}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello!"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " Hello, wörld 🌍\n"}],
    "turns": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"},
              {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"}, {"role": "user", "content": "2+2?"},
              {"role": "assistant", "content": "4", "reasoning_content": "hm\n"}, {"role": "user", "content": "thanks"}],
    "thinking": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", "reasoning_content": "one more"}],
    "calls": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
              {"role": "tool", "content": "{\"t\": 21.5}", "tool_call_id": "abcdefghi"},
              {"role": "assistant", "content": "21.5 °C"}, {"role": "user", "content": "And <tomorrow> & 'later'?"}],
    "two calls": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
                  {"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}],
    "call as text": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}],
    "wrong order": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "text", "text": "this"}]}],
    "odd role": [{"role": "critic", "content": "c"}],
}
KWARGS = [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": False},
          {"add_generation_prompt": True, "tools": TOOLS}]
DOCUMENTS = [{"title": "the first-born's day", "text": "word " * 20, "parts": [{"text": "inner"}, {"title": "x", "text": ""}]},
             {"title": "b", "text": "short"}]

# Language features one by one; a, b, … stand in VARIABLES.
VARIABLES = {"t": " Some Text, wörld \n", "l": [3, 1, 2], "w": ["pear", "Apple", "fig"], "n": None, "i": 7, "f": 2.5, "e": [],
             "d": {"b": 1, "a": [1, {"x": "y"}], "items": 3}, "p": [{"n": "x", "v": 2, "o": {"k": 1}}, {"n": "Y", "v": 1, "o": {"k": 2}}],
             "big": 123456789012345678901234567890, "q": "it's \"q\" \\ \t\u0007 é\u200b", "yes": True, "html": "<a href=\"x\">'&'</a>"}
SNIPPETS = r"""
{{ l }} {{ w }} {{ d }} {{ n }} {{ yes }} {{ f }} {{ big }} {{ q }} {{ [q, (1,), (), {}, 1.0, 1e20, 1e-7, -0.5] }}
{{ missing }}|{{ missing is defined }}|{{ d.missing }}|{{ d['a'][1].x }}|{{ d.items() | list }}|{{ d['items'] }}|{{ d.get('zz', 4) }}
{{ missing.x }}
{{ missing + 1 }}
{{ n.x }}|{{ n is none }}|{{ n == none }}|{{ none is undefined }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ 1 + 2 * 3 - -4 }} {{ 'a' * 3 }} {{ [1] * 2 + [2] }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 'a' + 1 }}
{{ 'a' ~ 1 ~ none ~ 1.5 ~ true }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ [1,2] == [1,2] }} {{ (1,2) == [1,2] }} {{ {'a':1} == {'a':1.0} }}
{{ 1 < 'a' }}
{{ 'x' in 'xyz' }} {{ 'b' in d }} {{ 3 in l }} {{ 9 not in l }} {{ not 3 in l }} {{ not yes and n }} {{ n or 'x' }} {{ 0 or [] }} {{ 1 and 2 }}
{{ 'a' if i > 5 else 'b' }}{{ 'c' if i > 9 }}{{ 'd' if i > 9 else 'e' if yes else 'f' }}
{{ t | trim }}|{{ t.strip() }}|{{ t | upper }}|{{ t | lower }}|{{ t | title }}|{{ t | trim | capitalize }}|{{ t.title() }}|{{ 'ab-cd(ef' | title }}
{{ 'xxaxx'.strip('x') }} {{ 'xxaxx'.lstrip('x') }} {{ 'xxaxx'.rstrip('x') }} {{ 'a b  c'.split() }} {{ 'a b  c'.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b '.split(none, 1) }} {{ 'a\nb\r\nc'.splitlines() }}
{{ 'héllo'[1] }} {{ 'héllo'[-1] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'héllo'[9] }} {{ 'héllo' | length }} {{ l[1:] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[:1] }} {{ l[5:] }} {{ l[::2] }} {{ l[-1] }} {{ l[7] }} {{ l[2:0:-1] }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'aXbX'.replace('X', '-') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'abc'.replace('', '.') }} {{ 'aab' | replace('a', 'b') }} {{ 'aXb'.count('X') }}
{{ 'abc'.index('z') }}
{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'A'.isupper() }} {{ ' '.isspace() }} {{ ''.isalpha() }} {{ '7'.zfill(3) }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }} {{ 'ab'.center(5, '*') }} {{ 'abcd'.removeprefix('ab') }} {{ 'abcd'.removesuffix('cd') }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ ','.join(w) }} {{ '{} {1}'.format(1, 2) if false else '{} {x}'.format(1, x='y') }}
{{ l | sort }} {{ l | sort(reverse=true) }} {{ w | sort }} {{ w | sort(case_sensitive=true) }} {{ p | sort(attribute='v') | map(attribute='n') | list }} {{ l | max }} {{ l | min }} {{ w | max }} {{ l | sum }} {{ p | sum(attribute='v') }} {{ e | max }} {{ l | first }} {{ l | last }} {{ e | first }} {{ 'ab' | first }} {{ l | reverse | list }} {{ 'ab' | reverse }}
{{ d | dictsort }} {{ d | length }} {{ d | list }} {{ [1, 1, 'a', 'A'] | unique | list }} {{ p | groupby('v') }} {{ l | batch(2) | list }} {{ l | batch(2, 'x') | list }} {{ l | slice(2) | list }} {{ l | slice(2, 'x') | list }}
{{ l | select('odd') | list }} {{ l | reject('odd') | list }} {{ p | selectattr('v', '>', 1) | list }} {{ p | rejectattr('n', 'eq', 'x') | map(attribute='o.k') | list }} {{ w | map('upper') | join(', ') }} {{ l | map('string') | list }} {{ p | map(attribute='zz', default='-') | list }} {{ l | select('in', [1, 3]) | list }} {{ [0, 1, ''] | select | list }}
{{ missing | default('x') }} {{ '' | default('x') }} {{ '' | d('x', true) }} {{ n | default('x') }} {{ '3.7' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ '0x1f' | int(0, 16) if false else 'ff' | int(0, 16) }} {{ '2.5' | float }} {{ 3 | float }} {{ -3 | abs }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.4 | round(0, 'ceil') }} {{ 42.55 | round(1, 'floor') }}
{{ d | tojson }} {{ q | tojson }} {{ big | tojson }} {{ [1.0, 1e22, 0.1, true, none] | tojson }} {{ d | tojson(indent=2) }} {{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true) }} {{ {1: 2, true: 3} | tojson }} {{ [] | tojson(indent=2) }} {{ {'a': []} | tojson(separators=(',', ':')) }}
{{ missing | tojson }}
{{ html | e }} {{ html | escape }} {{ 'a b&c' | urlencode }} {{ 'one two_three, four' | wordcount }} {{ 'a\nb\n\nc' | indent(2) }} {{ 'a\nb' | indent(2, true) }} {{ 'abcdefghij klmnop' | truncate(9) }} {{ 'abcdefghij klmnop' | truncate(9, true, '') }} {{ 'ab' | center(6) }}| {{ '%s is %d %.2f%%' | format('x', 3, 1.239) }} {{ '%r' % ('a',) }}
{{ i is odd }} {{ i is even }} {{ i is divisibleby 7 }} {{ i is divisibleby(2) }} {{ i is number }} {{ f is float }} {{ i is integer }} {{ true is integer }} {{ true is boolean }} {{ t is string }} {{ d is mapping }} {{ l is sequence }} {{ d is iterable }} {{ i is iterable }} {{ range is callable }} {{ 'A' is upper }} {{ 'a' is lower }} {{ i is eq 7 }} {{ i is in [7] }} {{ i is sameas 7 }} {{ i is gt 3 and i is le(7) }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ i is not odd }} {{ 'upper' is filter }}
{{ i is nonsense }}
{{ i | nonsense }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for x in e %}x{% else %}none{% endfor %}{% for x in missing %}x{% else %}none{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for c in 'hé' %}<{{ c }}>{% endfor %}{% for k in d %}{{ k }}{% endfor %}
{% for x in n %}x{% endfor %}
{% for x in 5 %}x{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.last }}{% else %}none{% endfor %}{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}
{% for x in range(5) %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}{{ range(2, 8, 3) | list }} {{ range(3) | length }}
{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}{% set ns = namespace(x=1, y='a') %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}{% if true %}{% set x = 5 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x %}block {{ a }}{% endset %}{{ x }}{% set x | upper %}block{% endset %}{{ x }}
{% macro m(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}
{% macro f(n) %}{% if n > 1 %}{{ n * f(n - 1) | int }}{% else %}1{% endif %}{% endmacro %}{{ f(5) }}
{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(5) }}
{% macro box(t) %}<{{ t }}>{{ caller('in') }}</{{ t }}>{% endmacro %}{% call(x) box('b') %}{{ x }} {{ i }}{% endcall %}
{% filter upper | replace('A', '-') %}a b {{ i }}{% endfilter %}{% with a = 2, b = 3 %}{{ a * b }}{% endwith %}{{ a }}
{%- if i == 7 -%} seven {%- elif i -%} other {%- else -%} none {%- endif -%}  x  {#- comment -#}  y {{- i -}} z
  {% if true %}
  a
    {%- endif %}
  {# comment #}
 b {% set x = 1 %} c
{%+ if true %}  d{%+ endif %}
{{ "a\n\t\\\'\"\x41\u00e9\d" }}{{ 'con' 'cat' }}{{ 1_000 }}{{ 1.5e3 }}{{ .5 if false else 0.5 }}{{ {'a': {'b': 1}}.a.b }}{{ {'a': {'b': 1}} }}
{{ (1, 2) }} {{ 1, 2 }} {{ () }} {{ (1) }} {{ [1, 2,] }} {{ {'a': 1,} }} {{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ l.index(1) }} {{ l.count(3) }} {{ d.keys() | list }} {{ d.values() | list }} {{ (l | length) - 1 }} {{ -f }} {{ +i }} {{ not i }} {{ -i | abs }} {{ -(i) }}
{{ l.append(4) }}
{{ d.update({}) }}
{{ raise_exception('no ' ~ i) }}
{{ undefined_function() }}
{{ 'a'.__class__ }}|{{ d.__class__ }}|{{ ''.join.__self__ }}
{% set ns = namespace() %}{% set ns.__x = 1 %}
{% if i %}a
{% endif %}b
{% set content = 'x' %}{% for content in w %}{{ content }}{% endfor %}{{ content }}
{{ strftime_now('%Y') | length }} {{ w[0][0] | upper + w[0][1:] }} {{ w | join(' ') | length }} {{ w[-1].split('') if false else 'ok' }}
{{ {'a': 1} | items | list }} {{ 'a' | attr('b') is undefined }} {{ yes | string | lower }} {{ '%s' | format(n) }} {{ [[1, 2], [3]] | map('length') | list }} {{ [[1, 2], [3]] | sum(start=[]) }} {{ 'a-b_c' | replace('-', '_') | upper }}
{{ w | map('capitalize') | list | tojson }} {{ p | map(attribute='n') | map('lower') | unique | list }} {{ loop is defined }} {{ 'ß'.upper() }} {{ 'ÀÉ'.lower() }} {{ 'a.b'.split('.')[-1] }} {{ 'x' if 'k' in (d.a[1] | default({})) else 'y' }}
{% generation %}text {{ i }}{% endgeneration %}
{% include 'x' %}
{% if %}
{{ 1 + }}
{{ unclosed
{% for x in l %}
{% endif %}
{{ 'open }}
{{ a b }}
{{ [1, 2 }}
{% unknown %}
""".strip("\n").split("\n")


def snippets():
    """One a line, but for the block of whitespace control, which is the lines that start with a space or {%+."""
    out = []
    for line in SNIPPETS:
        if out and (line.startswith(" ") or line.startswith("{%+")):
            out[-1] += "\n" + line
        else:
            out.append(line)
    return out


def cases(extra):
    for path in sorted(HERE.glob("*.jinja")) + extra:
        text = path.read_text()
        if path.name == "tokenizer_config.json":
            text = json.loads(text)["chat_template"]
        for name, messages in CONVERSATIONS.items():
            for kwargs in KWARGS:
                variables = {"messages": messages, "tools": None, "documents": DOCUMENTS if name == "one" else None,
                             "add_generation_prompt": False, **TOKENS, "date_string": "01 Jan 2025", **kwargs}
                yield (path, text, variables)


def by_transformers(text, variables):
    try:
        rest = dict(variables)
        rendered, _ = render_jinja_template([rest.pop("messages")], chat_template=text, **rest)
        return rendered[0]
    except Exception as error:  # the template's, whatever it is
        return error


def with_reasoning(variables):
    """What transformers does to messages before it renders them."""
    from transformers.utils.chat_template_utils import _alias_reasoning_fields
    return {**variables, "messages": _alias_reasoning_fields(variables["messages"])}


def all_cases(extra):
    """(where, template file or text, text, variables, expected or None for an error)."""
    for path, text, variables in cases(extra):
        expected = by_transformers(text, variables)
        yield path.name, text, with_reasoning(variables), expected
    for snippet in snippets():
        try:
            expected = _compile_jinja_template(snippet).render(**VARIABLES)
        except Exception as error:
            expected = error
        yield None, snippet, VARIABLES, expected


def write():
    goldens = {"variables": VARIABLES, "snippets": [], "chats": []}
    variables_of = {}
    for name, text, variables, expected in all_cases([]):
        expected = None if isinstance(expected, Exception) else expected
        if name is None:
            goldens["snippets"].append([text, expected])
        else:
            key = json.dumps(variables, ensure_ascii=False)
            number = variables_of.setdefault(key, len(variables_of))
            goldens["chats"].append([name, number, expected])
    goldens["contexts"] = [json.loads(key) for key in variables_of]
    (HERE / "goldens.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=0) + "\n")


def compare(tool, extra):
    everything = list(all_cases(extra))
    lines = "".join(json.dumps({"template": text, "variables": variables}) + "\n" for _, text, variables, _ in everything)
    answers = subprocess.run([tool], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    wrong = 0
    for (name, text, variables, expected), answer in zip(everything, answers, strict=True):
        answer = json.loads(answer)
        failed = isinstance(expected, Exception)
        if failed == ("error" in answer) and (failed or answer["text"] == expected):
            continue
        wrong += 1
        print(f"--- {name or text!r}\n  expected {expected!r}\n  actual   {answer!r}")
    print(f"{len(everything)} cases, {wrong} differ")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool")
    parser.add_argument("--template", nargs="*", type=pathlib.Path, default=[])
    options = parser.parse_args()
    if options.tool:
        raise SystemExit(compare(options.tool, options.template))
    write()


if __name__ == "__main__":
    main()
