"""Chat templates: the same text as transformers gives, and nothing that a hostile one can do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

from tests import tiny
from workbench.engines import template
from workbench.engines.template import prompt_of, render
from workbench.exceptions import WorkbenchError

CHAT = [
    {"role": "system", "content": 'Answer <briefly> & "well".\n'},
    {"role": "user", "content": "  What is 2 + 2?\n\nThink. é 😀"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Why?"},
]
WITHOUT_SYSTEM = CHAT[1:]

# The shapes that templates in the wild have, each with what is peculiar to it.
SHAPES = {
    "chatml": tiny.CHAT_TEMPLATE,
    "blocks on lines of their own": (
        "{% for message in messages %}\n"
        "    {% if message.role == 'system' %}\n"
        "<<SYS>>{{ message.content | trim }}<</SYS>>\n"
        "    {% else %}\n"
        "[{{ loop.index0 }}] {{ message.role | upper }}: {{ message['content'] }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}\n"
    ),
    "the first message split off, names of tokens": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}"
        "{%- set system = messages[0]['content'] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}"
        "{%- for m in rest -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('roles must take turns') }}{%- endif -%}"
        "{{ '[INST] ' + (system + '\\n' if system is defined and loop.first else '') + m.content + ' [/INST]' }}"
        "{{ eos_token if m.role == 'assistant' }}{%- endfor -%}"
    ),
    "a namespace and a loop with break and continue": (
        "{% set ns = namespace(last=0, found=false) %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% continue %}{% endif %}{% set ns.last = loop.index0 %}{% set ns.found = true %}"
        "{% if loop.index0 > 1 %}{% break %}{% endif %}{{ m.content }}|{% endfor %}{{ ns.last }}{{ ns.found }}"
    ),
    "json, without escapes for HTML": (
        "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{{ dict(a=m.role) | tojson }}{% endfor %}"
        "{% if tools is not none %}never{% endif %}{% if documents %}never{% endif %}"
    ),
    "a macro and filters": (
        "{% macro say(m, mark='#') %}{{ mark }}{{ m.role | capitalize }}: {{ m.content | trim | replace('2', 'two') }}"
        "{% endmacro %}{% for m in messages %}{{ say(m) }}{{ '\\n' if not loop.last }}{% endfor %}"
        "{{ messages | map(attribute='role') | join(',') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    ),
    "text of the assistant marked for training": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n{{ m.content }}\n{% endgeneration %}\n"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "today's date": "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content.split('?')[0] }}",
    "a variable that is not set": "{% if thinking is defined and thinking %}a{% else %}b{% endif %}{{ nothing }}",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chat", [CHAT, WITHOUT_SYSTEM], ids=["system", "no system"])
def test_the_text_is_that_of_transformers(tokenizer, shape, chat):
    theirs = tokenizer.apply_chat_template(
        chat, chat_template=SHAPES[shape], tokenize=False, add_generation_prompt=True
    )
    ours = prompt_of(SHAPES[shape], chat, model="m", tokens=tokenizer.special_tokens_map)
    assert ours.text == theirs
    assert ours.templated


HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "allocates a string": "{{ 'a' * 10**10 }}",
    "allocates bit by bit": "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = n.t * 2 %}{% endfor %}",
    "computes a huge number": "{{ 7 ** (7 ** 12) }}",
    "prints without end": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "reads Python's internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reads them by a filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "reads them by a format": "{{ '{0.__class__}'.format(1).nothing.here }}",
    "reads a helper's globals": "{{ raise_exception.__globals__['sys'] }}",
    "sets an internal attribute": "{% set ns = namespace(__class__='x') %}",
    "sets one later": "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}",
    "changes the messages": "{{ messages.append(1) }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}{{ os.getcwd() }}",
    "is not Jinja": "{% for %}",
    "uses what is not there": "{{ messages[0].nothing.here }}",
    "refuses": "{{ raise_exception('<b>no</b> system role') }}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_is_an_error_that_names_the_model(what):
    with pytest.raises(WorkbenchError, match="its chat template does not work") as caught:
        render(HOSTILE[what], {"messages": CHAT}, model="Evil-7B")
    assert caught.value.item == "Evil-7B"
    assert caught.value.do


def test_what_a_template_says_when_it_refuses_is_passed_on():
    with pytest.raises(WorkbenchError, match="<b>no</b> system role"):
        render(HOSTILE["refuses"], {"messages": CHAT}, model="m")


def test_a_template_that_escapes_its_sandbox_finds_nothing(tmp_path):
    """The process itself, with the sandbox taken away: no file, no child process, no environment, no memory."""
    escaped = f"""
import json, os, subprocess, sys
sys.argv = ["render.py", *sys.argv[1:]]
source = open({str(template.PROGRAM)!r}).read().rpartition('if __name__')[0]
exec(compile(source, "render.py", "exec"))
confine(64 << 20, 2)
def tries(what):
    try:
        what()
        return "done"
    except BaseException as error:
        return type(error).__name__
print(json.dumps({{
    "read": tries(lambda: open({str(template.PROGRAM)!r})),
    "write": tries(lambda: open({str(tmp_path / "x")!r}, "w")),
    "socket": tries(lambda: __import__("_socket").socket()),
    "run": tries(lambda: subprocess.run(["true"])),
    "allocate": tries(lambda: bytearray(200 << 20)),
}}))
"""
    folders = template._folders("jinja2", "markupsafe")
    done = subprocess.run([sys.executable, "-I", "-c", escaped, *folders], capture_output=True, text=True, check=True)
    assert '"done"' not in done.stdout, done.stdout
    assert not (tmp_path / "x").exists()


def test_the_template_sees_no_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    started = []
    real = subprocess.Popen

    def watch(*args, **kwargs):
        started.append(kwargs["env"])
        return real(*args, **kwargs)

    monkeypatch.setattr(template.subprocess, "Popen", watch)
    assert render("{{ 1 }}", {}, model="m") == "1"
    assert set(started[0]) <= {"SYSTEMROOT", "TZ"}


def test_a_model_without_a_template_gets_plain_text_and_a_note():
    prompt = prompt_of(None, [{"role": "user", "content": "Once upon"}], model="m", tokens={})
    assert prompt.text == "Once upon"
    assert not prompt.templated
    assert "no chat template" in prompt.note


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer():
    assert render("{{ messages[0].content }}", {"messages": [{"content": "a\ud83d"}]}, model="m") == "a?"
