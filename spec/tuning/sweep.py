"""The sweep: which settings there are, which of them cannot win, and where each is kept as it is measured."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from spec.costs.budget import check_cap
from spec.errors import BadInput
from spec.evaluation import served
from spec.evaluation.gate import at_once
from spec.evaluation.prompts import read_asked
from spec.export.verify import verify_files
from spec.methods import method_of
from spec.methods.files import MARKER as DRAFT_MARKER
from spec.methods.files import exported
from spec.methods.method import Drafts
from spec.server.sglang import SglangServer
from spec.storage import Store
from spec.storage.markers import Marker, find_marker, read_marker, write_marker
from spec.tuning import arithmetic
from spec.tuning.arithmetic import a_round
from spec.tuning.measure import SERVER, measure
from spec.tuning.settings import Settings, check_drafts

STEP = "tune"
FOLDER = "report"
MARKER = "sweep.json"

Json = dict[str, Any]
Open = Callable[[Drafts], AbstractContextManager[str]]  # the URL of a server with so many drafts a round; 0: without


class Sweep:
    """Of the draft in `run`. Raises `BadInput` for settings that cannot be measured, before any server is there."""

    def __init__(self, run: Store, target: Path, settings: Settings, *, overwrite: bool = False):
        self.run, self.target, self.settings, self.overwrite = run, target, settings, overwrite
        self.report = run.at(FOLDER)
        self.draft = exported(run.at("draft"))
        self.method = method_of(self.draft.facts["config"])
        self.block = self.method.most_drafts(self.draft.facts["config"])  # None: a chain, of any length
        check_drafts("--drafts", settings.drafts, self.method, self.draft.facts["config"])
        self.asked = read_asked(run, target, count=settings.prompts, max_new_tokens=settings.max_new_tokens)
        self.asked.check_load(max(settings.loads))
        self.measured: list[Json] = []
        self.skipped: list[Json] = []

    def measure(self, open_server: Open, draft: Path, say: Callable[[str], None] = print) -> None:
        """Whatever can win and is not measured yet; a server is opened where there is work for it.

        `draft`: a folder with the draft, verified.
        """
        with ExitStack() as held:
            plain: SglangServer | None = None
            for drafts in sorted(self.settings.drafts, key=arithmetic.order):
                with ExitStack() as own:
                    drafted: SglangServer | None = None
                    for load in sorted(self.settings.loads):
                        if self._known(drafts, load, say):
                            continue
                        check_cap(self.run, "what is measured is kept")
                        plain = plain or self._plain(held.enter_context(open_server(0)))
                        drafted = drafted or self._drafted(own.enter_context(open_server(drafts)), drafts, draft)
                        served.check_room(drafted, load, plain.max_running_requests)
                        say(f"measuring {a_round(drafts)} at {at_once(load)}, beside the server without the draft")
                        facts = measure(
                            plain, drafted, self.asked, drafts=drafts, load=load, rounds=self.settings.rounds
                        )
                        self._keep(facts)

    def left(self, say: Callable[[str], None] = print) -> list[Drafts]:
        """The numbers of drafts of which some load can win and is not measured yet."""
        drafts = sorted(self.settings.drafts, key=arithmetic.order)
        known = {count: [self._known(count, load, say) for load in sorted(self.settings.loads)] for count in drafts}
        return [count for count in drafts if not all(known[count])]

    def forget(self) -> None:
        """Of these settings nothing is measured any more."""
        for drafts, load in product(self.settings.drafts, self.settings.loads):
            self.report.delete(_key(drafts, load))

    def conclude(self) -> Marker:
        """Write sweep.json and, into `draft.json`, how to serve the draft. The same again where nothing changed.

        Raises `BadInput` where what is measured comes of different servers: they say nothing together.
        """
        settings, inputs = self._identity()
        self._check_alike()
        forwards = arithmetic.forward_ms(self.measured)
        for one in self.measured:
            one["verify_ms"] = arithmetic.verify_ms(one["drafts"], one["concurrency"], forwards)
        recommended = arithmetic.recommend(self.measured, self.skipped, self.settings.loads)
        flags = self.method.flags(recommended["drafts"]) if recommended["drafts"] else {}
        facts = {"measured": self.measured, "skipped": self.skipped, "recommended": recommended | {"flags": flags}}
        facts = json.loads(json.dumps(facts))
        marker = Marker.of(STEP, settings, inputs, facts=facts)
        there = read_marker(self.report, MARKER)
        if there is None or there.digest != marker.digest or there.facts != facts:
            there = write_marker(self.report, MARKER, marker)
        serving = {"drafts": recommended["drafts"], "speed_up": recommended["speed_up"]}
        if rooms := [one["max_running_requests"] for one in self.measured if one["max_running_requests"]]:
            serving["max_running_requests"] = max(rooms)
        if self.draft.facts.get("serving") != serving:  # no part of the draft's identity: its files are what they were
            self.draft.facts["serving"] = serving
            self.run.write(f"draft/{DRAFT_MARKER}", (self.draft.model_dump_json(indent=1) + "\n").encode())
        return there

    def _check_alike(self) -> None:
        for name in SERVER:
            seen = sorted({str(one["server"][name]) for one in self.measured if name in one["server"]})
            if len(seen) > 1:
                raise BadInput(
                    f"{self.report.url}/sweep: measured on servers whose {name} is {' and '.join(seen)}: their speeds "
                    "do not compare; --overwrite measures all of it again"
                )

    def _known(self, drafts: Drafts, load: int, say: Callable[[str], None]) -> bool:
        """Whether a setting is measured already or cannot win; it is then counted as such."""
        named = f"{a_round(drafts)} at {at_once(load)}"
        found = find_marker(
            self.report, _key(drafts, load), STEP, *self._identity(drafts, load), overwrite=self.overwrite
        )
        if found and not self.overwrite:
            self.measured.append(found.facts)
            say(f"{named}: measured already")
            return True
        bound = arithmetic.wins_at_most(drafts, load, self._by_position(drafts), self.measured)
        if arithmetic.cannot_win(bound, load, self.measured):
            self.skipped.append({"drafts": drafts, "concurrency": load, "at_most": bound})
            say(f"{named} cannot win: {bound:.2f} times the tokens/s at most")
            return True
        return False

    def _by_position(self, drafts: Drafts) -> Sequence[float] | None:
        """The most that was seen at each position: of a chain at any length, of a block at the same size alone."""
        chain = self.block is None
        known = [one for one in self.measured if chain or one["drafts"] == drafts]
        report = read_marker(self.report, "report.json")
        if report and report.inputs.get("draft") == self.draft.identity:
            parts = [report.facts.get(name) or {} for name in ("speculative", "offline")]
            greedy = [part for part in parts if part.get("num_steps") and "temperature" not in part]  # as is asked here
            known += [part for part in greedy if chain or part["num_steps"] == drafts]
        shares = [one["acceptance_by_position"] for one in known]
        return [max(seen) for seen in zip_longest(*shares, fillvalue=0.0)] or None

    def _plain(self, url: str) -> SglangServer:
        server = SglangServer(url)
        served.check_without_draft(server)
        served.check_target(server, self.target)
        served.check_room(server, max(self.settings.loads), None)
        return server

    def _drafted(self, url: str, drafts: Drafts, draft: Path) -> SglangServer:
        server = SglangServer(url)
        verify_files(draft, self.target, context_length=server.context_length)
        served.check_with_draft(server, self.method, self.draft, drafts)
        served.check_target(server, self.target)
        return server

    def _identity(self, drafts: Drafts | None = None, load: int | None = None) -> tuple[Json, Json]:
        """Settings and inputs of one setting's marker; without one, of the sweep's, which may come to have more."""
        settings: Json = {
            "prompts": len(self.asked.prompts),
            "max_new_tokens": self.settings.max_new_tokens,
            "rounds": self.settings.rounds,
        }
        if self.settings.server_options:
            settings |= {"server_options": self.settings.server_options}
        if drafts is not None:
            settings |= {"num_steps": drafts, "concurrency": load}
        return settings, {"draft": self.draft.identity, "prompts": self.asked.identity["prompts"]}

    def _keep(self, facts: Json) -> None:
        drafts, load = facts["drafts"], facts["concurrency"]
        settings, inputs = self._identity(drafts, load)
        marker = Marker.of(STEP, settings, inputs, facts=json.loads(json.dumps(facts)))
        self.measured.append(write_marker(self.report, _key(drafts, load), marker).facts)


def _key(drafts: Drafts, load: int) -> str:
    return f"sweep/drafts-{drafts}-at-{load}.json"
