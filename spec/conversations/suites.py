"""Suites of prompts that drafts are judged on: those that others publish figures of, by name, or a file of one's own.

mt-bench            from the hub, at the commit that suites.yaml names, or from an installed package
mt-bench=FILE       the same suite, its rows from a local file
FILE                one's own: each row a prompt or a conversation, whose user turns are asked one after the other
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from spec.conversations.rows import Row, Said, content_of, conversation_in, role_of, said_by_users
from spec.conversations.sources import Source, at_hand, open_source, whole_rows
from spec.errors import BadInput

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked: the user's turns, each after the answer to the one before."""

    turns: tuple[str, ...]
    system: str | None = None
    plain: str | None = None  # text to be continued, in place of a chat; it has one turn


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    lineage: Json  # where its rows come from, as a source says it
    questions: tuple[Question, ...]
    prompts: int | None = None  # as published figures were measured: questions, from the first on, ..
    max_new_tokens: int | None = None  # .. and tokens an answer may have; None of one's own
    stop: tuple[str, ...] = ()  # texts that end an answer


@cache
def catalogue() -> Json:
    """The named suites, by name: see suites.yaml."""
    return yaml.safe_load(files("spec.conversations").joinpath("suites.yaml").read_text())


def is_named(wanted: str) -> bool:
    """Whether `wanted` names a suite that is known, or a file of its rows; else it is a file of one's own."""
    return wanted.partition("=")[0] in catalogue()


def place_of(wanted: str) -> str:
    """Where the rows of a suite are: a file, a dataset of the hub, or "" where an installed package has them."""
    name, _, place = wanted.partition("=")
    if not is_named(wanted):
        return wanted
    known = catalogue()[name]
    return place or ("" if _packaged(known.get("package")) else known["dataset"])


def read_suite(wanted: str) -> Suite:
    """Raises `BadInput` for what is no suite, and `PassingFault` where the hub that has it cannot be reached."""
    name, _, place = wanted.partition("=")
    if not is_named(wanted):
        return _own(wanted)
    if "=" in wanted and not place:
        raise BadInput(f"--suite {wanted}: which file? NAME=FILE, or {name} alone for the hub's")
    known = catalogue()[name]
    with at_hand(place) as local:
        lineage, rows = _rows(known, local)
        asked = list(islice(rows, max(known["prompts"], known.get("examples", 0))))
    questions = tuple(_questions(known, asked, place or known["dataset"]))
    return Suite(
        name,
        known["title"],
        lineage | {"name": name},
        questions,
        prompts=known["prompts"],
        max_new_tokens=known["max_new_tokens"],
        stop=tuple(known.get("stop", ())),
    )


def _rows(known: Json, place: str) -> tuple[Json, Iterator[Row]]:
    place = place or _packaged(known.get("package"))
    if place:
        return whole_rows(place)
    return whole_rows(known["dataset"], split=known["split"], config=known.get("config"), revision=known["revision"])


def _packaged(path: str | None) -> str:
    """The file that an installed package carries, or "". The package itself is not imported."""
    package, _, file = (path or "").partition("/")
    found = importlib.util.find_spec(package) if package else None
    return str(Path(found.origin).parent / file) if found and found.origin else ""


def _questions(known: Json, rows: list[Row], place: str) -> Iterator[Question]:
    column = next((name for name in known["columns"] if rows and name in rows[0]), None)
    if column is None:
        seen = ", ".join(sorted(rows[0])) if rows else "none, since it is empty"
        raise BadInput(f"{place}: not {known['title']}: wanted a column {known['columns'][-1]}; its columns: {seen}")
    try:
        before = "".join(known["example"].format(**row) for row in rows[: known.get("examples", 0)])
        for row in rows[: known["prompts"]]:
            turns = tuple(row[column]) if isinstance(row[column], list) else (row[column],)
            if not turns or not all(isinstance(turn, str) and turn for turn in turns):
                raise BadInput(f"{place}: not {known['title']}: {column} is to hold text, or a list of texts")
            plain = before + known["text"].format(**row) if "text" in known else None
            yield Question(turns, known.get("system"), plain)
    except KeyError as missing:
        raise BadInput(f"{place}: not {known['title']}: a row has no {missing}") from missing


def read_own(place: str) -> tuple[Source, list[list[Said]]]:
    """A file of one's own: where its rows come from, and what is said in each of them."""
    with at_hand(place) as local:
        source = open_source(local)
        return source, [conversation_in(its.row, its.column) for its in source.read()]


def _own(place: str) -> Suite:
    """A file of prompts or conversations. What its assistants say is not used: the target's own answers stand there."""
    if not place.startswith("s3://") and not Path(place).exists():
        raise BadInput(f"--suite {place}: no such file, and no suite: those are {', '.join(catalogue())}, own")
    source, conversations = read_own(place)
    questions = tuple(filter(None, map(_asked, conversations)))
    if not questions:
        raise BadInput(f"--suite {place}: no row of it has a user's prompt")
    name = Path(place).name.partition(".")[0]
    lineage = {key: value for key, value in source.lineage.items() if value is not None}
    return Suite(name, name, lineage, questions)


def _asked(conversation: list[Said]) -> Question | None:
    turns = said_by_users(conversation)
    if not turns:
        return None
    first = conversation[0]
    system = content_of(first) if isinstance(first.role, str) and role_of(first) == "system" else None
    return Question(tuple(turns), system if isinstance(system, str) and system else None)
