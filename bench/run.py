"""Measure the drafts' steps, packing and preparation against their plain counterparts.

    python3 -m bench.run                        # everything: about an hour on two cores
    python3 -m bench.run --only step --rounds 5

What it measures again replaces that section of bench/results.json and the tables and the picture show all of it.
"""

import json
import os
from pathlib import Path
from typing import Annotated

from typer import Option

from bench import picture
from bench.sections import SECTIONS, Effort, machine
from bench.show import show
from spec import cli
from spec.errors import BadInput

HERE = Path(__file__).parent


def main(
    only: Annotated[list[str] | None, Option(help=f"A section: {', '.join(SECTIONS)}. Default: all.")] = None,
    rounds: Annotated[int, Option(min=1, help="Processes of each contender.")] = 3,
    timed: Annotated[int, Option(min=0, help="Steps timed in each process, after a first.")] = 2,
    threads: Annotated[int | None, Option(min=1, help="Default: one a core.")] = None,
    conversations: Annotated[int, Option(min=64, help="Of the preparation.")] = 5000,
    longest: Annotated[int, Option(min=1024, help="Tokens a row that the growth goes up to.")] = 8192,
    output: Annotated[Path, Option(help="Where results.json and growth.png go.")] = HERE,
) -> None:
    """Measure, print tables, write results.json and growth.png."""
    if unknown := set(only or ()) - set(SECTIONS):
        raise BadInput(f"--only {min(unknown)}: the sections are {', '.join(SECTIONS)}")
    effort = Effort(rounds, timed, threads or len(os.sched_getaffinity(0)), conversations, longest)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in only or SECTIONS:
        seen_on = machine(effort)
        results[name] = {"machine": seen_on, **SECTIONS[name](effort)}
        file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    if "growth" in results:
        picture.draw(results["growth"], output / "growth.png")


if __name__ == "__main__":
    cli.run(main)
