"""What Ollama should know of a GGUF beside its weights: a template, stop words, parameters; as a Modelfile, or sent.

Ollama's templates are in Go's language, and a model's own is in Jinja. One is not translated into the other here:
what the Jinja template does with a conversation is learned from what it renders (`engines.turns`), and said in Go
where it is that simple. Of other models Ollama makes out the template itself from the one in the file.
https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoint import Checkpoint
from workbench.engines.template import by_name, render, special_tokens
from workbench.engines.turns import Turns, turns_of
from workbench.exceptions import WorkbenchError

CONTEXT = 4096  # tokens
LONGEST_STOP = 40  # characters
BEGINNING = (  # pre-tokenizers with such a token unless the file says otherwise
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
)
_ENDS = ("eos", "eot", "eom")
_SAMPLING = {  # a GGUF's key after general.sampling. -> Ollama's name
    **{"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"},
    "penalty_repeat": "repeat_penalty",
}
_UNQUOTED = ("{{", "}}", '"""')  # what Go or a Modelfile takes for its own


@dataclass(frozen=True)
class Known:
    """What a model says of itself, in Ollama's terms.

    Attributes:
        template: in Go's language; "" where Ollama has to make it out.
        system: the system message that the model's own template gives where there is none; "" for none.
        stop: words that end a reply.
        parameters: Ollama's name -> value; num_ctx is the context length in tokens.
        note: one sentence on the template.
    """

    template: str
    system: str
    stop: tuple[str, ...]
    parameters: dict[str, int | float]
    note: str


def known(model: Checkpoint, context: int = CONTEXT) -> Known:
    """What Ollama should be told of a GGUF; its chat template is rendered in a confined process.

    Args:
        context: the context length that Ollama starts it with, in tokens, at most what it was made for.
    """
    turns = _turns(model)
    template = _template(turns) if turns is not None else ""
    if template and turns is not None:
        note = "The template is the model's own: it gave the same text in every conversation that was tried."
        if turns.system is None:
            note += " That refuses a system message; here one begins the first message of the user."
    elif model.chat_template:
        note = "The model's template is none of those that can be said here: Ollama makes it out from the file."
    else:
        note = "The model has no chat template: it continues the text of the prompt."
    longest = model.config.get("max_position_embeddings")
    parameters: dict[str, int | float] = {"num_ctx": min(context, longest) if isinstance(longest, int) else context}
    for key, name in _SAMPLING.items():
        value = model.metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            parameters[name] = round(value, 6)
    system = turns.default if template and turns is not None else ""
    return Known(template, system, _stops(model, turns if template else None), parameters, note)


def modelfile(model: Checkpoint, file: str | Path, *, context: int = CONTEXT) -> str:
    """The text by which `ollama create NAME -f Modelfile` takes the GGUF `file`, which lies beside the Modelfile.

    Args:
        model: that GGUF, opened.
        context: the context length that Ollama starts it with, in tokens.
    """
    name = Path(file).name
    if not name.isprintable():
        raise WorkbenchError(file, "its name has a character that does not print", do="give it another name")
    said = known(model, context)
    lines = [f"# {said.note}", f"FROM ./{name}"]
    if said.template:
        lines.append(f'TEMPLATE """{said.template}"""')
    if said.system:
        lines.append(f'SYSTEM """{said.system}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in said.parameters.items()]
    lines += [f'PARAMETER stop "{word}"' for word in said.stop]
    return "\n".join(lines) + "\n"


def _turns(model: Checkpoint) -> Turns | None:
    source = model.chat_template
    if source is None:
        return None
    special = by_name(special_tokens(model))
    begins = special.get("bos_token", "") if _begins_by_itself(model) else ""

    def rendered(messages: list[dict[str, str]], opening: bool) -> str:
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": opening}
        return render(source, {**variables, **special}, model=model.name).removeprefix(begins)  # llama.cpp adds it

    return turns_of(rendered)


def _begins_by_itself(model: Checkpoint) -> bool:
    """Whether llama.cpp begins every text with a token itself (src/llama-vocab.cpp), so that a template must not."""
    said = model.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(said, bool):
        return said
    kind = model.metadata.get("tokenizer.ggml.model")
    return kind == "llama" or (kind == "gpt2" and model.metadata.get("tokenizer.ggml.pre") in BEGINNING)


def _template(turns: Turns) -> str:
    """The same in Go's language; "" if a piece of it cannot be written there."""
    pieces = (*turns.user, *turns.assistant, *(turns.system or ()), turns.begin, turns.opening, turns.default)
    if not all(map(_can_be_said, pieces)) or turns.opening.endswith('"') or turns.default.endswith('"'):
        return ""
    system, joined = (turns.system, turns.joined) if turns.system is not None else ((turns.user[0], "\n\n"), True)
    around = {"system": system, "user": turns.user, "assistant": turns.assistant}
    by_name = {(before.replace(role, "{{ .Role }}", 1), after) for role, (before, after) in around.items()}
    if not joined and len(by_name) == 1:
        ((before, after),) = by_name
        return f"{_loop(turns.begin, '')}{before}{{{{ .Content }}}}{after}{{{{ end }}}}{turns.opening}"
    before_user = turns.user[0]
    if joined and before_user:
        before_user = f"{{{{ if or (ne $at 1) (not $.System) }}}}{before_user}{{{{ end }}}}"
    return (
        _loop(turns.begin, "$at, $_ := ")
        + f'{{{{ if eq .Role "system" }}}}{system[0]}{{{{ .Content }}}}{system[1]}'
        + f'{{{{ else if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{turns.user[1]}'
        + f'{{{{ else if eq .Role "assistant" }}}}{turns.assistant[0]}{{{{ .Content }}}}{turns.assistant[1]}'
        + f"{{{{ end }}}}{{{{ end }}}}{turns.opening}"
    )


def _can_be_said(piece: str) -> bool:
    """Whether a text stays as it is in a Modelfile, which leaves out tabs and other characters that do not print."""
    return piece.replace("\n", "").isprintable() and not any(mark in piece for mark in _UNQUOTED)


def _loop(begin: str, variables: str) -> str:
    return f"{begin}{{{{ range {variables}.Messages }}}}"


def _stops(model: Checkpoint, turns: Turns | None) -> tuple[str, ...]:
    """The tokens that end a text, and what begins a turn of the user, which is not the model's to write."""
    words = [text for _, text in special_tokens(model, _ENDS).values()]
    if turns is not None:
        words += [turns.user[0].strip(), turns.assistant[1].strip()]
    return tuple(dict.fromkeys(word for word in words if _is_stop(word)))


def _is_stop(word: str) -> bool:
    return 1 < len(word) <= LONGEST_STOP and word.isprintable() and '"' not in word and "\\" not in word
