"""One cell of the table of methods: a draft trained on a run's samples for a number of drafts a round, and measured.

Every step is a command of the README, in a run directory of the cell's own, and goes on where it was killed.
`cell.json` there keeps the figures of each step that ended.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spec import cli, settings
from spec.errors import BadInput
from spec.methods.files import exported
from spec.server.start import sglang_on_cpu
from spec.storage import open_store
from spec.storage.markers import Marker, find_marker, read_marker, write_marker

Json = dict[str, Any]

RECIPE = "spec/eagle_full_finetune_distributed.py"
CONFIGS = Path("spec/configs/smollm2")  # the demo's
ROWS = 2  # a training step reads, in however many processes: as the demo's two do
STEP, MARKER = "cell", "cell.json"


@dataclass(frozen=True)
class Way:
    """What differs between methods here."""

    config: Path
    trained_for: Callable[[int], str]  # the setting with which it learns so many drafts a round
    forwards: Callable[[int], int]  # of the draft, for so many drafts a round


WAYS = {
    "eagle3": Way(CONFIGS / "135M_eagle.yaml", lambda drafts: f"steps={drafts}", lambda drafts: drafts),
    "dflash": Way(CONFIGS / "135M_dflash.yaml", lambda drafts: f"block_size={drafts + 1}", lambda drafts: 1),
    "dspark": Way(CONFIGS / "135M_dspark.yaml", lambda drafts: f"block_size={drafts}", lambda drafts: 1),
}


@dataclass(frozen=True)
class Effort:
    """What all cells share."""

    run: Path  # whose samples they train on, and whose held-out prompts they are asked
    target: Path
    output: Path
    processes: int = 2
    prompts: int = 32
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Cell:
    method: str
    drafts: int  # a round, in training and serving
    tried: tuple[str, ...] = ()  # settings other than the config's: key=value

    @property
    def name(self) -> str:
        """Of its folder. No `=`: run_dir=FOLDER is a setting, which has one."""
        return re.sub("[=/]", "_", "-".join((self.method, str(self.drafts), *self.tried)))

    @property
    def settings(self) -> tuple[str, ...]:
        return WAYS[self.method].trained_for(self.drafts), *self.tried

    @property
    def draft_forwards(self) -> int:
        """A round."""
        return WAYS[self.method].forwards(self.drafts)


def measure(cell: Cell, effort: Effort, stages: Sequence[str]) -> Json:
    """The figures of `stages` (of `STAGES`, in their order), and of those measured before. `BadInput` for a cell that
    was made otherwise.
    """
    store = open_store(effort.output / cell.name)
    its = identity(cell, effort)
    found = find_marker(store, MARKER, STEP, *its)
    facts = dict(found.facts) if found else {}
    for name in stages:
        if name not in facts:
            facts[name] = STAGES[name](cell, effort, effort.output / cell.name)
            write_marker(store, MARKER, Marker.of(STEP, *its, facts=facts))
    return facts


def train(cell: Cell, effort: Effort, own: Path) -> Json:
    """Train and export. The seconds are those of the steps alone, however often they were stopped."""
    shutil.copytree(effort.run / "samples", own / "samples", dirs_exist_ok=True)
    shutil.copy(effort.run / "run.json", own)
    where = (f"run_dir={own}", f"target={effort.target}", f"batch_size={ROWS // effort.processes}", "save_every=100")
    recipe = (RECIPE, "--config", WAYS[cell.method].config, *where, *cell.settings)
    call("tune", "run", "--nproc_per_node", effort.processes, *recipe)
    extract = ("tools/extract_draft_model.py", "--checkpoint_dir", own / "checkpoints", "--target", effort.target)
    call(sys.executable, *extract)
    metrics = [json.loads(line) for line in (own / "checkpoints/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if "loss" in row]
    return {
        "steps": steps[-1]["step"],
        "seconds": sum(row["seconds"] for row in steps),
        "cpu_seconds": sum(row["cpu_seconds"] for row in steps),
        "accuracy": steps[-1]["accuracy_by_position"],
        "held_out": next((row["held_out"] for row in reversed(metrics) if "held_out" in row), None),
        "config": exported(open_store(own).at("draft")).facts["config"],
    }


def offline(cell: Cell, effort: Effort, own: Path) -> Json:
    call(*_evaluate(cell, effort, own))
    return _figures(json.loads((own / "report/offline.json").read_text()))


def served(cell: Cell, effort: Effort, own: Path) -> Json:
    """On the real server; its report says whether it kept the same drafts as the offline run."""
    environment = {"DRAFT_STEPS": str(cell.drafts)}
    with sglang_on_cpu(
        effort.target, own / "draft", log=own / "logs/server.log", environment=environment, patience=1200
    ) as url:
        call(*_evaluate(cell, effort, own), "--base-url", url)
    facts = json.loads((own / "report/report.json").read_text())["facts"]
    return _figures(facts["speculative"]) | {"agreement": facts["agreement"]}


def speed(cell: Cell, effort: Effort, own: Path) -> Json:
    """Tokens/s one request at a time, in turn with the server without the draft, as `[median, least, most]`."""
    tune = ("tools/tune_server.py", own, "--target", effort.target, "--concurrency", 1, "--drafts", cell.drafts)
    call(sys.executable, *tune, "--prompts", 8, "--rounds", 2, "--max-new-tokens", effort.max_new_tokens)
    (measured,) = json.loads((own / "report/sweep.json").read_text())["facts"]["measured"]
    return {name: measured[name] for name in ("plain", "drafted", "speed_up", "costs")}


STAGES = {its.__name__: its for its in (train, offline, served, speed)}


def call(*command: object) -> None:
    """Run a command, shown first; its failure ends the table with its own exit code."""
    words = [str(word) for word in command]
    print("$ " + shlex.join(words), file=sys.stderr, flush=True)
    if code := subprocess.run(words, check=False).returncode:
        cli.fail(f"{shlex.join(words)} ended with {code}; the same table again goes on from here", code)


def _evaluate(cell: Cell, effort: Effort, own: Path) -> list[object]:
    asked = ("--prompts", effort.prompts, "--max-new-tokens", effort.max_new_tokens, "--drafts", cell.drafts)
    return [
        *(sys.executable, "tools/evaluate_draft.py", own, "--target", effort.target, *asked, "--without", "baseline")
    ]


def _figures(part: Json) -> Json:
    return {name: part[name] for name in ("accept_length", "acceptance_by_position", "tokens", "forwards")}


def identity(cell: Cell, effort: Effort) -> tuple[Json, Json]:
    """What decides a cell: settings and inputs of its marker. `BadInput` for settings that cannot be meant."""
    samples = read_marker(open_store(effort.run), "samples/samples.json")
    if samples is None:
        raise BadInput(f"{effort.run}: no samples; run the demo, or tools/prepare_data.py {effort.run}, first")
    given = {"run_dir": str(effort.run), "target": str(effort.target)}
    merged = OmegaConf.merge(settings.read(WAYS[cell.method].config, list(cell.settings)), given)
    assert isinstance(merged, DictConfig)
    trained = settings.deciding(settings.complete(merged))
    asked = {"prompts": effort.prompts, "max_new_tokens": effort.max_new_tokens}
    own = {"method": cell.method, "drafts": cell.drafts, "tried": list(cell.tried)}
    return {**own, "training": trained, **asked}, {"samples": samples.identity}
