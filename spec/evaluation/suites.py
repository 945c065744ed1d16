"""Suites of prompts asked of a draft, here or of a server with it: accept length by suite, turn and context.

    RUN/report/suites/humaneval-offline.json, humaneval-served.json      a marker each

Prompts that the draft was trained on are left out and counted. A second turn is asked after the target's own answer to
the first.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from spec.conversations.lineage import read_run
from spec.conversations.rows import conversation_in, said_by_users
from spec.conversations.selection import prompt_hash
from spec.conversations.shards import read_answers
from spec.conversations.suites import Question, Suite, is_named, read_suite
from spec.errors import BadInput
from spec.evaluation import figures, offline, served
from spec.evaluation.figures import Counted
from spec.evaluation.prompts import Asked, held_out_ids, read_tokenizer, stop_tokens
from spec.evaluation.settings import OWN, OfSuites
from spec.evaluation.step import FOLDER, Evaluation
from spec.progress import Wait
from spec.samples.template import ChatTemplate
from spec.server.sglang import ServedAnswer
from spec.storage import Store
from spec.storage.markers import Marker, find_marker, write_marker
from spec.target.families import read_config, text_config_of

STEP = "suite"
PLACE = f"{FOLDER}/suites"

Json = dict[str, Any]
Answer = Callable[[Asked], Sequence[ServedAnswer]]

_DAY = "2024-07-26"  # what Llama's templates write where nobody names a day
_SPARE = 8  # positions of a context that a server keeps for the drafts of a last round


@dataclass
class Counts:
    """What a suite came to: of each turn the answers, and what was not asked."""

    turns: list[list[Counted]] = field(default_factory=list)
    too_long: int = 0  # turns whose prompt leaves no room for an answer


class Suites:
    """Of the draft in `evaluation`. Raises `BadInput` for names that are no suites, before anything is measured."""

    def __init__(self, evaluation: Evaluation, wanted: Sequence[str], settings: OfSuites, *, overwrite: bool = False):
        self._evaluation, self._settings, self._overwrite = evaluation, settings, overwrite
        given = [name for name in wanted if name != OWN]
        self._suites = [read_suite(name) for name in given]
        for name, its in zip(given, self._suites, strict=True):
            if not is_named(name) and (its.name == OWN or is_named(its.name)):
                raise BadInput(
                    f"--suite {name}: it would be told as {its.name}, which is another; give the file another name"
                    + (f", or ask {its.name}={name}" if its.name != OWN else "")
                )
        names = Counter(suite.name for suite in self._suites)
        if twice := [name for name, count in names.items() if count > 1]:
            raise BadInput(f"--suite {twice[0]}: given twice")
        self._trained: frozenset[bytes] | None = None
        self.worked = False  # something was not measured before

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return read_tokenizer(self._evaluation.target)

    def measure_offline(self, device: str) -> list[Json]:
        """Without a server. Gives the figures of each suite."""
        steps = self._evaluation.settings.drafts

        def answer(asked: Asked) -> Sequence[ServedAnswer]:
            loaded = self._evaluation.loaded(device)
            return offline.answers(loaded, self._tokenizer, asked, steps=steps, step="offline speculation")

        def connect() -> tuple[Answer, int]:
            config = text_config_of(read_config(self._evaluation.target))
            return answer, min(config.max_position_embeddings, self._evaluation.exported.facts["context_length"])

        return [self._one(suite, "offline", connect) for suite in self._suites]

    def measure_served(self, url: str) -> list[Json]:
        """On a server with the draft, which is asked only where something is not measured yet."""
        concurrency = self._evaluation.load

        @cache
        def connect() -> tuple[Answer, int]:
            server = self._evaluation.drafted(url)

            def answer(asked: Asked) -> Sequence[ServedAnswer]:
                return served.measure(server, asked, concurrency=concurrency, step="with the draft")[1].answers

            return answer, server.context_length

        return [self._one(suite, "served", connect) for suite in self._suites]

    def _one(self, suite: Suite, where: str, connect: Callable[[], tuple[Answer, int]]) -> Json:
        """A suite's figures, measured unless they are there. `connect` gives who answers, and the longest context."""
        evaluation, key = self._evaluation, f"{suite.name}-{where}.json"
        store, draft = evaluation.run.at(PLACE), evaluation.exported
        questions = suite.questions[: self._settings.prompts]
        longest = self._settings.max_new_tokens or suite.max_new_tokens or self._settings.own_max_new_tokens
        rendering = Rendering(self._tokenizer, evaluation.run)
        drafts = evaluation.settings.drafts
        settings = {
            "suite": suite.name,
            "prompts": len(questions),
            "max_new_tokens": longest,
            "num_steps": drafts,
        }
        temperature = evaluation.settings.temperature
        sampled = {"temperature": temperature} if temperature else {}
        settings |= sampled
        inputs = {"draft": draft.identity, "prompts": rendering.identity(suite, questions)}
        if found := find_marker(store, key, STEP, settings, inputs, overwrite=self._overwrite):
            print(f"{suite.title}, {where}: measured already")
            return found.facts
        self.worked = True
        trained = self._trained_on(draft)
        known = trained if trained is not None else frozenset()
        asked = [question for question in questions if prompt_hash(question.turns[0]) not in known]
        print(f"{suite.title}, {where}: {len(asked)} prompts, answers of {longest} tokens at most")
        counts = Counts()
        if asked:
            answer, context = connect()
            blank = Asked((), (), longest, stop_tokens(evaluation.target), suite.stop, temperature)
            counts = ask(asked, rendering, answer, blank, room=context - longest - _SPARE, drafts=drafts)
        facts = {
            "suite": suite.name,
            "title": suite.title,
            **sampled,
            "where": "offline" if where == "offline" else "on the server",
            "num_steps": drafts,
            "max_new_tokens": longest,
            "as_published": {"prompts": suite.prompts, "max_new_tokens": suite.max_new_tokens},
            "source": suite.lineage,
            "questions": len(questions),
            "trained_on": len(questions) - len(asked) if trained is not None else None,
            **summary(counts),
        }
        marker = Marker.of(STEP, settings, inputs, facts=json.loads(json.dumps(facts)))
        return write_marker(store, key, marker).facts

    def _trained_on(self, draft: Marker) -> frozenset[bytes] | None:
        """Hashes of those first prompts of all suites that the draft's training rows hold; None where nobody knows."""
        if self._trained is None and "published" not in draft.facts:
            wanted = {prompt_hash(question.turns[0]) for suite in self._suites for question in suite.questions}
            with Wait("the training rows, read to know which prompts are theirs"):
                self._trained = trained_on(self._evaluation.run, wanted)
        return self._trained


class Rendering:
    """Questions as token ids, by the target's own chat template, with the settings that the run's answers have."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, run: Store):
        self._tokenizer = tokenizer
        asked_with = read_run(run).get("sampling", {}).get("chat_template_kwargs") or {}
        self._settings = asked_with[0] if isinstance(asked_with, list) else asked_with
        self._template: ChatTemplate | None = None  # a target without one can still continue plain text

    def ids(self, question: Question, answers: Sequence[list[int]]) -> list[int]:
        """What the target is given after its `answers` to the turns before."""
        if question.plain is not None:
            return self._tokenizer.encode(question.plain)
        messages = [{"role": "system", "content": question.system}] if question.system else []
        for turn, tokens in zip(question.turns, answers, strict=False):
            said = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": said}]
        messages.append({"role": "user", "content": question.turns[len(answers)]})
        self._template = self._template or ChatTemplate(self._tokenizer, self._settings, trust_day=True)
        return self._tokenizer.encode(self._template.prompt(messages, _DAY), add_special_tokens=False)

    def identity(self, suite: Suite, questions: Iterable[Question]) -> str:
        first = [[self.ids(question, ()), question.turns[1:]] for question in questions]
        plain = json.dumps([first, suite.stop], sort_keys=True).encode()
        return hashlib.sha256(plain).hexdigest()[:16]


def ask(
    questions: Sequence[Question], rendering: Rendering, answer: Answer, blank: Asked, *, room: int, drafts: int
) -> Counts:
    """Every turn of `questions`, the first turns of all before the second ones.

    `blank` has what every prompt is asked with, `room` the tokens that a prompt may have; a conversation ends with the
    first one that has more. Raises `BadInput` where no prompt fits.
    """
    counts, answers = Counts(), [list[list[int]]() for _ in questions]
    for turn in range(max((len(question.turns) for question in questions), default=0)):
        due = [at for at, question in enumerate(questions) if len(question.turns) > turn == len(answers[at])]
        ids = {at: rendering.ids(questions[at], answers[at]) for at in due}
        fitting = [at for at in due if len(ids[at]) <= room]
        counts.too_long += len(due) - len(fitting)
        if not fitting:
            break
        prompts = tuple(tuple(ids[at]) for at in fitting)
        texts = tuple(questions[at].turns[turn] for at in fitting)
        given = answer(replace(blank, prompts=prompts, texts=texts))
        for at, one in zip(fitting, given, strict=True):
            answers[at].append(one.tokens)
        counts.turns.append(served.counts(prompts, given, drafts))
    if questions and not counts.turns:
        raise BadInput(
            f"no prompt of the suite leaves room for answers of {blank.max_new_tokens} tokens in a context of "
            f"{room + blank.max_new_tokens + _SPARE}; ask for shorter ones with --suite-tokens"
        )
    return counts


def summary(counts: Counts) -> Json:
    """The figures of a suite; `prompts` 0 where every one was trained on."""
    every = [answer for turn in counts.turns for answer in turn]
    return {
        **figures.acceptance(every).figures(),
        "interval": figures.interval(every),
        "prompts": len(counts.turns[0]) if counts.turns else 0,
        "answers": len(every),
        "too_long": counts.too_long,
        "by_turn": figures.by_turn(counts.turns),
        "by_context": figures.by_context(every),
    }


def trained_on(run: Store, wanted: set[bytes]) -> frozenset[bytes] | None:
    """Which of `wanted`, hashes of prompts, users say in answered rows that are not held out. None without answers."""
    held_out, found = held_out_ids(run), set[bytes]()
    try:
        for row in read_answers(run):
            if row["id"] not in held_out:
                found |= wanted & {prompt_hash(text) for text in said_by_users(conversation_in(row, "messages"))}
    except BadInput:  # no answers, or not all of them: a draft from elsewhere, or of fetched samples
        return None
    return frozenset(found)
