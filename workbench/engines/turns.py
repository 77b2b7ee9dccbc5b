"""How a chat template puts turns together, learned from what it renders, so that it can be said in another language.

Most templates are constant text around each message. Which text, that shows in conversations rendered with known
messages; whether that is all of it shows in others, longer ones, which must come out the same to the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from workbench.exceptions import WorkbenchError

Messages = list[dict[str, str]]
Render = Callable[[Messages, bool], str]

# Contents that appear in no template; and some of several lines, with what HTML and JSON would escape.
SYSTEM, FIRST, ANSWER, SECOND = "quill-amber-71", "heron-basalt-23", "lichen-cobalt-58", "otter-gypsum-94"
INSTRUCTION = 'Be <brief> & "exact",\nplease.'
OTHERS = ("What is 2 + 2?\n\nThink.", "It is 4.", "Why's that?", "So: 1 + 3.", "Ah.")


@dataclass(frozen=True)
class Turns:
    """Text around the messages of a conversation in which user and assistant take turns.

    Attributes:
        user: before and after a message of the user.
        assistant: before and after one of the assistant.
        opening: after the last message, where the assistant begins.
        begin: before everything.
        system: before and after the system message, which comes first; None: the template refuses one.
        joined: whether the user's first message follows the system message without the text before it.
        default: the system message that the template gives by itself where there is none; "" if it gives none.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str
    begin: str = ""
    system: tuple[str, str] | None = None
    joined: bool = False
    default: str = ""

    def render(self, messages: Messages) -> str:
        """The text of a conversation, the assistant next."""
        if self.default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        parts = [self.begin]
        for at, message in enumerate(messages):
            before, after = around[message["role"]]
            if at == 1 and self.joined and messages[0]["role"] == "system":
                before = ""
            parts += [before, message["content"], after]
        return "".join([*parts, self.opening])


def turns_of(render: Render) -> Turns | None:
    """What `render` does, or None where it is more than constant text around the messages.

    Args:
        render: the text that a model reads of a conversation, with or without the beginning of the assistant's
            next message; raises WorkbenchError for a conversation that its template refuses.
    """
    try:
        learned = _learned(render)
        return learned if learned is not None and _holds(learned, render) else None
    except WorkbenchError:
        return None


def _learned(render: Render) -> Turns | None:
    pieces = _cut(render(_talk(FIRST, ANSWER, SECOND), True), FIRST, ANSWER, SECOND)
    after_user = _cut(render(_talk(FIRST), False), FIRST)
    after_answer = _cut(render(_talk(FIRST, ANSWER), False), FIRST, ANSWER)
    if pieces is None or after_user is None or after_answer is None:
        return None
    begin, to_answer, to_user, end = pieces
    user_ends, answer_ends = after_user[-1], after_answer[-1]
    # How the text between two messages is shared out changes no conversation; so it is where templates part it.
    if not (to_user.startswith(answer_ends) and begin.endswith(to_user.removeprefix(answer_ends))):
        answer_ends = to_user.removesuffix(_same_beginning(to_user[::-1], begin[::-1])[::-1])
    either = _same_beginning(to_answer, end)
    user_ends = next(each for each in (user_ends, answer_ends, either) if either.startswith(each))
    user_begins = to_user.removeprefix(answer_ends)
    turns = Turns(
        user=(user_begins, user_ends),
        assistant=(to_answer.removeprefix(user_ends), answer_ends),
        opening=end.removeprefix(user_ends),
        begin=begin.removesuffix(user_begins),
    )
    try:
        instructed = _cut(render(_talk(FIRST, system=SYSTEM), True), SYSTEM, FIRST)
    except WorkbenchError:  # refused
        return turns
    return None if instructed is None else _with_system(turns, *instructed[:2])


def _with_system(turns: Turns, before: str, between: str) -> Turns | None:
    """With the text before a system message, and between it and the first of the user."""
    joined = not between.endswith(turns.user[0])
    after = between if joined else between.removesuffix(turns.user[0])
    if before.startswith(turns.begin):
        system = (before.removeprefix(turns.begin), after)
        return replace(turns, system=system, joined=joined)
    if turns.begin.startswith(before) and turns.begin.endswith(after):  # a system message of the template's own
        default = turns.begin[len(before) : len(turns.begin) - len(after)]
        return replace(turns, begin="", system=(before, after), joined=joined, default=default)
    return None


def _holds(turns: Turns, render: Render) -> bool:
    told = [] if turns.system is None else [_talk(*OTHERS, system=INSTRUCTION), _talk(OTHERS[0], system=INSTRUCTION)]
    return all(turns.render(talk) == render(talk, True) for talk in (_talk(*OTHERS), _talk(OTHERS[0]), *told))


def _talk(*contents: str, system: str = "") -> Messages:
    """User and assistant in turns."""
    said = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *said] if system else said


def _same_beginning(one: str, other: str) -> str:
    return one[
        : next(
            (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
            min(len(one), len(other)),
        )
    ]


def _cut(text: str, *marks: str) -> list[str] | None:
    """The text around the marks, which have to be in it once each and in this order."""
    parts, rest = [], text
    for mark in marks:
        if text.count(mark) != 1 or mark not in rest:
            return None
        part, _, rest = rest.partition(mark)
        parts.append(part)
    return [*parts, rest]
