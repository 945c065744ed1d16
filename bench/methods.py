"""Every method on the same answers: what its draft accepts, and what that costs to train and to serve.

    python3 -m bench.methods runs/demo runs/demo-inputs/SmolLM2-135M-Instruct --drafts 3,7
    python3 -m bench.methods RUN TARGET --method eagle3 --drafts 3 --set epochs=2 --only offline

Each method is trained for, and served at, each number of drafts a round: on the samples of RUN, with its demo settings,
by the commands of the README, and asked the same held-out prompts offline and in the real SGLang on this CPU. `--set`
tries another setting, in a cell of its own. Accept lengths are the same on a busy machine; tokens/s want a quiet one,
and are measured with `--speed` alone. Killed, the same command goes on.

OUTPUT has a run directory for each cell, and methods.json and methods.md with all of its cells.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from bench.cells import Cell, Effort, identity, measure
from spec import cli
from spec.errors import BadInput
from spec.methods import METHODS, method_named, method_of

Json = dict[str, Any]
UNSEEN = "not yet"


def main(
    run: Annotated[Path, Argument(help="A run with samples, as the demo's.")],
    target: Annotated[Path, Argument(help="The target's directory.")],
    method: Annotated[list[str] | None, Option(help="eagle3, dflash, dspark; several times. Default: all.")] = None,
    drafts: Annotated[str, Option(help="Drafts a round, as 3,7.")] = "3,7",
    tried: Annotated[
        list[str] | None, Option("--set", help="A training setting other than the config's, key=value; several times.")
    ] = None,
    only: Annotated[str | None, Option(help="train or offline: go no further.")] = None,
    speed: Annotated[bool, Option("--speed", help="Also tokens/s, beside the server without the draft.")] = False,
    processes: Annotated[int, Option(min=1, max=2, help="Trainer processes.")] = 2,
    prompts: Annotated[int, Option(min=1, help="Held-out prompts.")] = 32,
    max_new_tokens: Annotated[int, Option(min=2)] = 64,
    output: Annotated[Path | None, Option(help="Where the cells go. Default: beside RUN, RUN-methods.")] = None,
) -> None:
    """Train each method for each number of drafts a round, measure what it accepts, and write the table."""
    effort = Effort(run, target, output or run.with_name(f"{run.name}-methods"), processes, prompts, max_new_tokens)
    wanted, order = cells(method or list(METHODS), drafts, tried or []), stages(only, speed)
    for cell in wanted:
        identity(cell, effort)  # refuses now what would be refused an hour later
    for cell in wanted:
        measure(cell, effort, order)
        write(effort.output)
    print((effort.output / "methods.md").read_text())


def cells(methods: list[str], drafts: str, tried: list[str]) -> list[Cell]:
    """Every method with every number of drafts; `BadInput` before anything is trained."""
    for name in methods:
        method_named(name)
    try:
        counts = sorted({int(word) for word in drafts.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise BadInput(f"--drafts {drafts}: whole numbers of at least 1, as 3,7")
    if unnamed := [word for word in tried if "=" not in word]:
        raise BadInput(f"--set {unnamed[0]}: it reads like epochs=2")
    return [Cell(name, count, tuple(tried)) for count, name in product(counts, methods)]


def stages(only: str | None, speed: bool) -> list[str]:
    order = ["train", "offline", "served"]
    if only not in (None, *order[:2]) or (only and speed):
        raise BadInput(f"--only {only}: train or offline, and then without --speed")
    return order[: order.index(only) + 1] if only else order + ["speed"] * speed


def write(output: Path) -> None:
    """methods.json and methods.md, of all cells in `output`."""
    found = [json.loads(path.read_text()) for path in output.glob("*/cell.json")]
    (output / "methods.json").write_text(json.dumps(rows := sorted(map(row, found), key=place), indent=1) + "\n")
    (output / "methods.md").write_text(table(rows))


def row(marker: Json) -> Json:
    """A cell's figures, and what they are of."""
    settings, facts = marker["settings"], marker["facts"]
    cell = Cell(settings["method"], settings["drafts"], tuple(settings["tried"]))
    return {
        "method": cell.method,
        "drafts": cell.drafts,
        "draft_forwards": cell.draft_forwards,
        "tried": list(cell.tried),
        "about": about(settings["training"], facts["train"]["config"]),
        "samples": marker["inputs"]["samples"],
        **facts,
    }


def place(row: Json) -> tuple[Any, ...]:
    """The table's order: what is promised first, by drafts and method; then what was tried."""
    return bool(row["tried"]), row["drafts"], list(METHODS).index(row["method"]), row["tried"]


def about(training: Json, config: Json) -> dict[str, str]:
    """What was trained: the draft, as the card describes it, and the settings that decide most."""
    loss = training.get("objective") or " + ".join(f"{training[name]:g} {name}" for name in ("ce", "l1"))
    described = {name: str(value) for name, value in method_of(config).describe(config)}
    return described | {"loss": loss, "start": training["initialise"], "epochs": str(training["epochs"])}


def table(rows: list[Json]) -> str:
    """Markdown: the figures, and below them what each draft is."""
    lines = [
        "| drafts | method | accept length: offline, SGLang | kept at 1, 2, .. | steps | training: CPU s (wall s) "
        "| draft forwards (a round) | tokens/s without, with |",
        "|---|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        "| drafts | method | features, layers, block, loss, start |",
        "|---|---|---|",
        *(f"| {row['drafts']} | {named(row)} | {described(row['about'])} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def line(row: Json) -> str:
    trained, found, real, speed = (row.get(name) for name in ("train", "offline", "served", "speed"))
    rounds = (real or found or {}).get("forwards")
    cells = (
        row["drafts"],
        named(row),
        f"{length(found)}, {length(real)}",
        " ".join(f"{share:.0%}" for share in found["acceptance_by_position"]) if found else UNSEEN,
        trained["steps"],
        f"{trained['cpu_seconds']:.0f} ({trained['seconds']:.0f})",
        f"{rounds * row['draft_forwards']:,} ({row['draft_forwards']})" if rounds else UNSEEN,
        f"{pace(speed, 'plain')}, {pace(speed, 'drafted')} ({speed['speed_up'][0]:.2f} times)" if speed else UNSEEN,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def named(row: Json) -> str:
    return ", ".join((METHODS[row["method"]].title, *row["tried"]))


def described(about: dict[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in about.items())


def length(part: Json | None) -> str:
    return f"{part['accept_length']:.3f}" if part else UNSEEN


def pace(speed: Json, server: str) -> str:
    return f"{speed[server]['tokens_per_s'][0]:.1f}"


if __name__ == "__main__":
    cli.run(main)
