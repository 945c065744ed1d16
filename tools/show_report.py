"""Print what the evaluation found, and write its page: also of a draft that missed the bar, since it says why."""

from pathlib import Path
from typing import Annotated

import typer

from spec import cli
from spec.report import page as report
from spec.report.evidence import gather
from spec.report.figures import figures
from spec.report.tables import costs
from spec.storage import open_store


def main(
    run: Annotated[str, typer.Argument(help="The run: a directory or s3://BUCKET/PREFIX")],
    html: Annotated[Path, typer.Option(help="Where to write the page")],
    outputs: Annotated[Path | None, typer.Option(help="Folder for the run's figures, a file each")] = None,
) -> None:
    """Show a run's report."""
    evidence = gather(open_store(run))
    html.write_text(report.render(evidence))
    for part in ("baseline", "offline", "speculative"):
        measured = evidence.measured(part)
        for name in ("untrained_accept_length", "accept_length", "tokens_per_s", "tokens_equal_baseline"):
            if name in measured:
                print(f"{part} {name}: {measured[name]}")
    for step, told in costs(evidence):
        print(f"cost of {step}: {told}")
    if outputs is not None:
        outputs.mkdir(parents=True, exist_ok=True)
        for name, value in figures(evidence).items():
            (outputs / name).write_text(value)
    print(f"gate: {evidence.measured('gate').get('why', 'the report is not complete: see the evaluation')}")


if __name__ == "__main__":
    cli.run(main)
