"""What the expected-acceptance (LK) objective is worth: accept length after the same training with each objective.

    python3 -m bench.objectives runs/demo runs/demo-inputs/SmolLM2-135M-Instruct

Each trains on the samples of RUN from the same beginning, in the same order and for as many steps, with the demo's
settings, and is exported and evaluated offline on the same held-out prompts, by the commands of the README.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from spec import cli
from spec.errors import BadInput, SpecError

RECIPE = "spec/eagle_full_finetune_distributed.py"


def main(
    run: Annotated[Path, Argument(help="A run with samples.")],
    target: Annotated[Path, Argument(help="The target's directory.")],
    config: Annotated[Path, Option(help="The training's settings.")] = Path("spec/configs/smollm2/135M_eagle.yaml"),
    objectives: Annotated[str, Option(help="Comma-separated: ce, lk, hard.")] = "ce,lk",
    epochs: Annotated[int, Option(min=1)] = 3,
    processes: Annotated[int, Option(min=1, help="Trainer processes.")] = 1,
    prompts: Annotated[int, Option(min=1, help="Held-out prompts.")] = 32,
    max_new_tokens: Annotated[int, Option(min=2)] = 64,
    output: Annotated[
        Path | None, Option(help="Where the trainings go. Default: beside RUN, RUN-ce and so on.")
    ] = None,
) -> None:
    """Train with each objective and compare accept lengths."""
    if not (run / "samples/samples.json").exists():
        raise BadInput(f"{run}: no samples; run tools/prepare_data.py {run} first")
    table = Table(
        "objective", "accept length", "kept at 1, 2, ..", title=f"{epochs} epochs, {prompts} prompts, offline"
    )
    for objective in objectives.split(","):
        own = (output or run.parent) / f"{run.name}-{objective}"
        shutil.copytree(run / "samples", own / "samples", dirs_exist_ok=True)
        shutil.copy(run / "run.json", own)
        launch = ["tune", "run", "--nproc_per_node", str(processes), RECIPE, "--config", str(config)]
        settings = [f"run_dir={own}", f"target={target}", f"objective={objective}", f"epochs={epochs}"]
        _call(*launch, *settings, "evaluate_every=null")
        extract = [
            "tools/extract_draft_model.py",
            "--checkpoint_dir",
            str(own / "checkpoints"),
            "--target",
            str(target),
        ]
        _call(sys.executable, *extract)
        asked = ["--prompts", str(prompts), "--max-new-tokens", str(max_new_tokens)]
        _call(sys.executable, "tools/evaluate_draft.py", str(own), "--target", str(target), *asked)
        found = json.loads((own / "report/offline.json").read_text())
        kept = " ".join(f"{share:.3f}" for share in found["acceptance_by_position"])
        table.add_row(objective, f"{found['accept_length']:.3f}", kept)
    Console().print(table)


def _call(*command: str) -> None:
    print("$ " + shlex.join(command), file=sys.stderr, flush=True)
    if code := subprocess.run(command, check=False).returncode:
        raise SpecError(f"{shlex.join(command)} ended with {code}")


if __name__ == "__main__":
    cli.run(main)
