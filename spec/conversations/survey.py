"""A look at a source's first rows before anything is asked: whether they have tools, and what these will cost."""

import itertools
import json
from typing import NamedTuple

from spec.conversations import tools
from spec.conversations.mixes import Mix
from spec.conversations.rows import Reject, messages_in
from spec.conversations.sources import Source
from spec.conversations.text_calls import has_text_calls

_ROWS = 100  # of the source, of which every shard sees the same
_CHARACTERS = 4  # of a token, about


class Survey(NamedTuple):
    """What the first rows of a source are like."""

    rows: int
    with_tools: int  # rows
    answers: int  # to ask for, of the rows with tools
    characters: int  # of the tools and histories that these are asked with
    text_calls: int = 0  # of the rows with tools those whose calls are text

    @property
    def lines(self) -> float:
        """Lines that a row comes to: one, or of a row with tools one for each answer."""
        return (self.rows - self.with_tools + self.answers) / self.rows if self.rows else 1.0

    def cost(self, asked: float | None) -> str:
        """One line about what rows with tools cost; `asked` are the rows to ask, None where nobody knows how many."""
        tokens, with_tools = self.characters / _CHARACTERS, self.with_tools
        total = "" if asked is None or not self.rows else f", {_about(tokens * asked / self.rows)} in all of this shard"
        return (
            f"rows with tools: {with_tools} of the first {self.rows}; each of their answers is asked for with the "
            f"dataset's own history, {self.answers / with_tools:.1f} a row, with {_about(tokens / with_tools)} prompt "
            f"tokens a row{total} (an estimate: {_CHARACTERS} characters a token); --turns bounds it"
        )


def survey(source: Source | Mix, turns: str | int) -> Survey:
    seen = with_tools = answers = characters = text_calls = 0
    for read in itertools.islice(source.read(), _ROWS):
        seen += 1
        messages = messages_in(read.row, read.column)
        if tools.has_tools(read.row, messages):
            with_tools += 1
            text_calls += has_text_calls(messages)
            asked, its = _asked(read.row, messages, 1 if read.is_request else turns)
            answers, characters = answers + asked, characters + its
    return Survey(seen, with_tools, answers, characters, text_calls)


def _asked(row: dict, messages: list, turns: str | int) -> tuple[int, int]:
    """How many answers are asked for of a row with tools, and with how many characters in all."""
    try:
        trace = tools.read_trace(row, messages)
    except Reject:
        return 1, 0  # one line
    before = [0, *itertools.accumulate(len(json.dumps(message, ensure_ascii=False)) for message in trace.messages)]
    offered = len(json.dumps(trace.tools, ensure_ascii=False))
    asked = tools.exchanges(trace, turns)
    return len(asked), sum(offered + before[len(exchange.history)] for exchange in asked)


def _about(tokens: float) -> str:
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if tokens >= unit:
            return f"about {tokens / unit:.1f}{name}"
    return f"about {tokens:,.0f}"
