"""Renders one chat template. A program of its own, run by template.py in a confined process; never imported.

A chat template is code from a stranger. Jinja's sandbox keeps honest mistakes away, and
has been escaped before; so it runs here, where there is nothing to reach: no file can be
opened, no process started, memory and time are bounded, and the environment is empty.

Protocol: argv = folders that hold jinja2 and markupsafe. Writes one byte when it is
ready, reads {"template", "variables", "memory", "seconds", "longest"} as JSON from
stdin, answers {"text"} or {"problem"} as JSON on stdout.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime

if __name__ == "__main__":
    sys.path += sys.argv[1:]

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here its content is simply shown."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Namespace(jinja2.utils.Namespace):
    """Jinja's own, without attributes that could shadow Python's internals."""

    def __init__(*args, **values):
        self, *rest = args
        attributes = dict(*rest, **values)
        for name in attributes:
            refuse_internal(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        refuse_internal(name)
        super().__setitem__(name, value)


def refuse_internal(name):
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"it sets the internal attribute {name!r}")


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own would write < as \u003c for use in a page
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def reraise(source=None):
    raise  # instead of a traceback rewritten to show the template's lines, for which jinja2 opens files


def environment():
    """The sandbox, options and helpers that transformers gives to chat templates."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    made.globals["dict"] = lambda *args, **values: dict(*args, **values)
    made.globals["namespace"] = Namespace
    made.handle_exception = reraise
    return made


def confine(memory, seconds):
    """Give up what a template has no use for; what the system does not offer is left to the parent's clock."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/statm") as held:  # noqa: PTH123
            memory += int(held.read().split()[0]) * resource.getpagesize()
        limits = {resource.RLIMIT_AS: memory}
    except OSError:  # macOS, which does not enforce it
        limits = {}
    limits |= {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    limits |= {resource.RLIMIT_NPROC: 0, resource.RLIMIT_NOFILE: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def answer(question):
    try:
        text = environment().from_string(question["template"]).render(**question["variables"])
    except jinja2.TemplateSyntaxError as error:
        return {"problem": f"it is not a valid Jinja template (line {error.lineno}: {error.message})"}
    except jinja2.exceptions.SecurityError as error:
        return {"problem": f"it tries to leave the sandbox ({error})"}
    except (jinja2.exceptions.UndefinedError, jinja2.TemplateRuntimeError) as error:
        return {"problem": f"it cannot be rendered ({error})"}
    except jinja2.TemplateError as error:
        return {"problem": f"it refuses this conversation: {error}", "refused": True}
    except MemoryError:
        return {"problem": "it needs too much memory"}
    except RecursionError:
        return {"problem": "it calls itself without end"}
    except Exception as error:
        return {"problem": f"it cannot be rendered ({type(error).__name__}: {error})"}
    if len(text) > question["longest"]:
        return {"problem": f"it makes {len(text):,} characters of this conversation, more than {question['longest']:,}"}
    return {"text": text}


if __name__ == "__main__":
    environment().from_string("{{ strftime_now('%Y') }}{{ [1] | tojson }}").render()  # loads what is loaded lazily
    sys.stdout.buffer.write(b".")
    sys.stdout.buffer.flush()
    question = json.load(sys.stdin.buffer)
    confine(question["memory"], question["seconds"])
    sys.stdout.buffer.write(json.dumps(answer(question)).encode("ascii"))
