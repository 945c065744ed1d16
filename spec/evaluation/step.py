"""The evaluate step: measures what can be measured now, keeps it, and writes the report once all of it is there."""

import json
from pathlib import Path
from typing import Any

from spec.errors import BadInput
from spec.evaluation import gate, offline, regression, served
from spec.evaluation.drafts import verified_draft
from spec.evaluation.figures import differences
from spec.evaluation.parts import NAMES, Parts
from spec.evaluation.prompts import Asked, read_asked, read_tokenizer
from spec.evaluation.settings import LOAD, Settings
from spec.methods import method_of
from spec.methods.files import MARKER as DRAFT_MARKER
from spec.methods.method import Method
from spec.server.sglang import SglangServer, Timed
from spec.storage import Store
from spec.storage.markers import Marker, find_marker, read_marker, write_marker

STEP = "evaluate"
FOLDER = "report"
MARKER = "report.json"


class Evaluation:
    """Of the draft in `run`. Raises `BadInput` where a report of another draft or other settings is there."""

    def __init__(
        self,
        run: Store,
        target: Path,
        settings: Settings,
        *,
        overwrite: bool = False,
        standing: regression.Standing | None = None,
    ):
        """`standing`: the draft that is to be replaced, where the new one is compared with it."""
        self.run, self.target, self.settings, self.standing = run, target, settings, standing
        lengths = {"count": settings.prompts, "max_new_tokens": settings.max_new_tokens}
        self.asked = read_asked(run, target, **lengths, temperature=settings.temperature)
        self.load = settings.concurrency or min(LOAD, len(self.asked.prompts))
        self.asked.check_load(self.load)
        self.draft = read_marker(run.at("draft"), DRAFT_MARKER)  # None before it is exported: a baseline needs none
        self.report = run.at(FOLDER)
        self.parts = Parts(self.report, _measured_on(self.asked, settings.drafts, self.load, self.draft, standing))
        self.written = None
        self._loaded: dict[str, offline.Loaded] = {}  # by device
        if self.draft:
            self._check_drafts(self.draft.facts["config"])
            self.written = find_marker(self.report, MARKER, STEP, *self._identity(), overwrite=overwrite)

    @property
    def missing(self) -> list[str]:
        """The parts that the report still needs."""
        return [name for name in NAMES if name not in self.parts and name not in self.settings.without]

    def _check_drafts(self, config: dict[str, Any]) -> None:
        most = self.method.most_drafts(config)
        if most is not None and self.settings.drafts > most:
            raise BadInput(
                f"--drafts {self.settings.drafts}: the draft was trained for blocks of {most} drafts a round; what it "
                "would say beyond them it has never learnt"
            )

    @property
    def exported(self) -> Marker:
        """The draft's marker. Raises `BadInput` where none is exported yet."""
        if self.draft is None:
            raise BadInput(f"{self.run.url}/draft: no exported draft; run tools/extract_draft_model.py first")
        return self.draft

    @property
    def method(self) -> Method:
        return method_of(self.exported.facts["config"])

    def measure_offline(self, device: str) -> None:
        """Speculation on this machine's `device`, without a server."""
        loaded, tokenizer = self.loaded(device), read_tokenizer(self.target)
        self.parts.keep("offline", offline.measure(loaded, tokenizer, self.asked, steps=self.settings.drafts))

    def loaded(self, device: str) -> offline.Loaded:
        """Target and draft, verified and read once."""
        if device not in self._loaded:
            with verified_draft(self.run.at("draft"), self.draft, self.target) as folder:
                self._loaded[device] = offline.load(self.method, self.target, folder, device)
        return self._loaded[device]

    def measure_in_turn(self, baseline_url: str, base_url: str) -> None:
        """Both servers, so that their speeds can be compared whatever else the machine does."""
        plain, drafted = self._plain(baseline_url), self._drafted(base_url)
        served.check_room(drafted, self.load, plain.max_running_requests)
        without, part, answers = served.measure_in_turn(plain, drafted, self.asked, concurrency=self.load)
        self._keep_served("baseline", without, plain)
        self._keep_drafted("speculative", part, answers, drafted, self.settings.drafts)

    def measure_standing(self, device: str) -> None:
        """The same of the draft that is to be replaced."""
        assert self.standing is not None
        self._loaded.pop(device, None)  # two targets may not fit
        with verified_draft(self.run.at(self.standing.folder), self.standing.marker, self.target) as folder:
            loaded = offline.load(self.standing.method, self.target, folder, device)
        steps, tokenizer = self.standing.drafts(self.settings.drafts), read_tokenizer(self.target)
        self.parts.keep("published_offline", offline.measure(loaded, tokenizer, self.asked, steps=steps))

    def measure_baseline(self, url: str) -> None:
        """A server without the draft."""
        server = self._plain(url)
        self._check_room(server, "speculative")
        part, _ = served.measure(server, self.asked, concurrency=self.load, step="without the draft")
        self._keep_served("baseline", part, server)

    def measure_speculative(self, url: str) -> None:
        """A server with the draft."""
        server = self.drafted(url)
        part, answers = self._ask_drafted(server)
        self._keep_drafted("speculative", part, answers, server, self.settings.drafts)

    def measure_standing_speculative(self, url: str) -> None:
        """A server with the draft that is to be replaced."""
        assert self.standing is not None
        server, steps = SglangServer(url), self.standing.drafts(self.settings.drafts)
        served.check_with_draft(server, self.standing.method, self.standing.marker, steps)
        self._check_room(server, "speculative")
        served.check_target(server, self.target)
        part, answers = self._ask_drafted(server)
        self._keep_drafted("published_speculative", part, answers, server, steps)

    def drafted(self, url: str) -> SglangServer:
        """The server at `url`, checked: it serves this target with this draft, and can be compared to the baseline."""
        server = self._drafted(url)
        self._check_room(server, "baseline")
        return server

    def conclude(self, bar: gate.Bar) -> Marker:
        """Write the report from the parts, all there; the same one again where nothing changed."""
        parts = {name: self.parts[name] for name in NAMES if name not in self.settings.without}
        published = self.compared() if bar.max_regression is not None else None
        facts = json.loads(json.dumps(gate.conclude(parts, bar, published)))
        if self.written and self.written.facts == facts:
            return self.written
        settings, inputs = self._identity()
        return write_marker(self.report, MARKER, Marker.of(STEP, settings, inputs, facts=facts))

    def _plain(self, url: str) -> SglangServer:
        server = SglangServer(url)
        served.check_without_draft(server)
        served.check_target(server, self.target)
        return server

    def _drafted(self, url: str) -> SglangServer:
        server = SglangServer(url)
        with verified_draft(self.run.at("draft"), self.draft, self.target, server.context_length):
            pass
        served.check_with_draft(server, self.method, self.exported, self.settings.drafts)
        served.check_target(server, self.target)
        return server

    def compared(self) -> dict[str, Any]:
        """The draft beside the one that it is to replace: see `regression.compare`."""
        there = {name: self.parts[name] for name in self.parts}
        found = regression.compare(self.standing, self.exported, there, self.asked.hashes)
        if found is None:
            raise BadInput(
                "--max-regression: of the draft that is published, no figure was measured as those of the new one; "
                "leave out --without offline, or give --published-url"
            )
        return found

    def _identity(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings and inputs of the report. The bar is no setting: another one is judged on the same figures."""
        settings = {
            "prompts": len(self.asked.prompts),
            "max_new_tokens": self.settings.max_new_tokens,
            "num_steps": self.settings.drafts,
            "concurrency": self.load,
            "without": sorted(self.settings.without),
        }
        settings |= {"temperature": self.settings.temperature} if self.settings.temperature else {}
        return settings, {"draft": self.exported.identity, "prompts": self.asked.identity["prompts"]}

    def _check_room(self, server: SglangServer, other: str) -> None:
        there = self.parts[other]["server"].get("max_running_requests") if other in self.parts else None
        served.check_room(server, self.load, there)

    def _ask_drafted(self, server: SglangServer) -> tuple[dict[str, Any], Timed]:
        return served.measure(server, self.asked, concurrency=self.load, step="with the draft")

    def _keep_drafted(self, name: str, part: dict[str, Any], answers: Timed, server: SglangServer, steps: int) -> None:
        before = name.replace("speculative", "offline")
        accepts_offline = before not in self.parts or self.parts[before]["accept_rate"] > 0
        part |= served.acceptance(server, self.asked.prompts, answers, steps, accepts_offline=accepts_offline)
        self._keep_served(name, part, server)

    def _keep_served(self, name: str, part: dict[str, Any], server: SglangServer) -> None:
        if self.asked.temperature:  # what is drawn differs from one answer to the next
            self.parts.keep(name, part | {"differ": []})
            return
        for other in self.parts:
            if other != name:
                served.check_same_model(server, part["outputs"], self.parts[other]["outputs"], f"the {other} part")
        self.parts.keep(name, part)
        if "baseline" in self.parts and "speculative" in self.parts:
            plain, drafted = self.parts["baseline"], self.parts["speculative"]
            differ = differences(plain["outputs"], drafted["outputs"], self.asked.prompts, server.gap)
            self.parts.keep("speculative", drafted | {"tokens_equal_baseline": not differ, "differ": differ})


def _measured_on(
    asked: Asked, drafts: int, load: int, draft: Marker | None, standing: regression.Standing | None
) -> dict[str, Any]:
    """What each part depends on. The answers without a draft are the same for every draft."""
    served_as = asked.identity | {"concurrency": load}
    drafted = {"draft": draft.identity if draft else None, "num_steps": drafts}
    own = {"offline": asked.identity | drafted, "baseline": served_as, "speculative": served_as | drafted}
    if standing is None:
        return own
    drafted = {"draft": standing.marker.identity, "num_steps": standing.drafts(drafts)}
    return own | {"published_offline": asked.identity | drafted, "published_speculative": served_as | drafted}
