"""The program in which checks run apart (`apart`): a line of JSON in, a line of JSON out, until it is killed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from typing import Any


def main() -> None:
    # Whatever a check prints goes nowhere: this pipe is for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    function = None
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            if "function" in question:
                function = _made(question["function"])
                answer: dict[str, Any] = {"score": None}
            elif "check" in question:
                from workbench.tasks.checks import CHECKS

                answer = {"score": CHECKS[question["check"]].score(question["reply"], question["wanted"])}
            else:
                assert function is not None
                answer = {"score": _plain(function(question["reply"], _made(question["row"])))}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _made(sent: str | None) -> Any:
    """What this workbench pickled a moment ago, in the process that started this one."""
    return pickle.loads(base64.b64decode(sent)) if sent else None


def _plain(value: Any) -> Any:
    """A function's result for JSON; what is no number is shown as it would be printed."""
    if hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, bool | int | float) else f"{value!r:.60}"


if __name__ == "__main__":
    main()
