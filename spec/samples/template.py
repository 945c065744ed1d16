"""A conversation as the target's own chat template renders it, and which of its characters the target wrote.

The characters come from rendering prefixes: what the template writes for the messages before an answer, with the
generation prompt, is what the server was given; what it writes beyond that is what the target answered. Where a
template marks its answers itself (`{% generation %}`), its marks narrow that down.
"""

import re
from datetime import date
from typing import Any, NamedTuple

import jinja2

from spec.conversations.day import OR
from spec.conversations.rows import Reject
from spec.errors import BadInput

Message = dict[str, Any]
Span = tuple[int, int]  # characters, end exclusive

RETOKENISED = "retokenised_differently"  # the bucket of conversations that do not read back as the server saw them
DAY_UNKNOWN = "day_unknown"  # of those that were answered near midnight, where the template writes the day


# The block that says "no reasoning here" is the template's, not the model's, even where it stands in the answer.
_NO_THOUGHT = re.compile(r"<think>\s*</think>\s*")


class Answer(NamedTuple):
    """One assistant turn in a row's text."""

    turn: int  # 0 is the conversation's first assistant turn
    start: int  # where the prompt that the server was given ends
    end: int  # where the turn's text ends, with what the template writes after its end-of-turn token
    bears: list[Span]  # bears loss, within [start, end)


class Row(NamedTuple):
    """A training row before tokenisation."""

    text: str
    answers: list[Answer]


class ChatTemplate:
    """The chat template of a tokenizer, with the settings (`enable_thinking`, ...) that the server was asked with.

    A template that writes the date writes `day`, on which the server was asked, if that is trusted: what the server's
    own clock made of it, no text shows. Otherwise, and without a day, it is `BadInput`.
    """

    def __init__(self, tokenizer: Any, settings: dict[str, Any], *, trust_day: bool = False):
        if not tokenizer.chat_template:
            raise BadInput(f"{tokenizer.name_or_path}: this tokenizer has no chat template; use the chat model's own")
        from transformers.utils.chat_template_utils import render_jinja_template  # seconds, where torch is installed

        self._jinja: Any = render_jinja_template
        self._template = tokenizer.get_chat_template()
        self._variables = {**tokenizer.special_tokens_map, **settings}
        self.is_dated = False  # known once it has rendered
        self._trust_day = trust_day
        self._marks = re.search(r"\{%-?\s*generation\b", self._template) is not None

    def prompt(self, messages: list[Message], day: str | None = None) -> str:
        """What the server is given to answer `messages`."""
        return self._render(messages, day, add_generation_prompt=True)[0]

    def rows(self, messages: list[Message], day: str | None = None) -> list[Row]:
        """The training rows of a conversation: one, or one for each answer where later turns change earlier ones.

        Templates of reasoning models leave the reasoning out of earlier answers. Then a single row would train the
        draft on answers that the target never gave in that context, so each answer gets its own row and there alone
        bears loss. Raises `Reject` where a row cannot be what the
        server saw, `BadInput` where the template refuses the messages.
        """
        ends = [place + 1 for place, message in enumerate(messages) if message["role"] == "assistant"]
        turns = [self._turn(messages[:end], turn, day) for turn, end in enumerate(ends)]
        if not turns:
            return []
        text = turns[-1].text
        if all(text.startswith(turn.text) for turn in turns):
            return [Row(text, [answer for turn in turns for answer in turn.answers])]
        return turns

    def _turn(self, messages: list[Message], turn: int, day: str | None) -> Row:
        """The conversation up to an answer, with loss on that answer alone."""
        prompt = self.prompt(messages[:-1], day)
        text, marked = self._render(messages, day, add_generation_prompt=False)
        if not text.startswith(prompt):
            raise Reject(RETOKENISED, f"answer {turn + 1}: not rendered after the template's own generation prompt")
        start, end = len(prompt), len(text)
        thought = _NO_THOUGHT.match(text, start)
        first = thought.end() if thought else start
        bears = [(max(first, begin), min(stop, end)) for begin, stop in (marked if self._marks else [(start, end)])]
        return Row(text, [Answer(turn, start, end, [(begin, stop) for begin, stop in bears if begin < stop])])

    def _render(
        self, messages: list[Message], day: str | None, *, add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        """The text, and the answers that the template marks in it; text parts joined with a space, as SGLang does."""
        messages = [message | {"content": _joined(message["content"])} for message in messages]
        try:
            texts, marks = self._jinja(
                conversations=[messages],
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=self._marks,
                strftime_now=lambda form: self._told(day).strftime(form),  # in place of the clock
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise BadInput(
                f"the chat template refuses the messages ({error}); was this another model's run?"
            ) from error
        return texts[0], marks[0] if self._marks else []

    def _told(self, day: str | None) -> date:
        self.is_dated = True
        advice = "filter again with SGLang 0.5.23, which tells the tokens themselves"
        if day is None:
            raise BadInput(
                f"the chat template writes today's date, and the answers do not say the day on which they were given: "
                f"{advice}"
            )
        if not self._trust_day:
            raise BadInput(
                f"the chat template reads the clock (it writes today's date), and text answers do not show what the "
                f"server's clock said: {advice}, or, if that is set right and to UTC or this machine's zone, use "
                f"--trust-day, and the samples carry the day that the server told, here {day}"
            )
        if OR in day:
            raise Reject(DAY_UNKNOWN, f"answered near midnight, on {day}, and the chat template writes the day")
        return date.fromisoformat(day)


def _joined(content: Any) -> Any:
    return " ".join(part["text"] for part in content) if isinstance(content, list) else content
