"""Export a checkpoint's draft in the form that SGLang loads, and verify it.

    python3 tools/extract_draft_model.py --checkpoint_dir RUN/checkpoints

It writes RUN/draft: config.json, model.safetensors and draft.json, which keeps what tools/verify_draft.py checks.
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from spec import cli
from spec.costs.meter import Meter
from spec.progress import Wait
from spec.storage import open_store

with Wait("importing torch and transformers"):
    from spec.export.extract import extract, find_checkpoint, why_this


def main(
    checkpoint_dir: Annotated[
        str,
        Option(
            "--checkpoint_dir",
            "--checkpoint-dir",
            help="RUN/checkpoints (its best by estimate, else its newest), or one step-N in it.",
        ),
    ],
    output: Annotated[str | None, Option(help="Where the draft goes. Default: RUN/draft.")] = None,
    target: Annotated[Path | None, Option(help="The target's directory. Default: the one of the run.")] = None,
    dtype: Annotated[str | None, Option(help="bfloat16, float16 or float32. Default: the target's.")] = None,
    context_length: Annotated[
        int | None,
        Option(min=1, help="The longest context the draft is served with. Default: the target's, to 131072."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a draft made otherwise.")] = False,
) -> None:
    """Export a checkpoint's draft in the form that SGLang loads, and verify it."""
    run, name, checkpoint = find_checkpoint(checkpoint_dir)
    print(why_this(run, name), end="")
    store = open_store(output) if output else run.at("draft")
    with Meter(run, "extract") as meter:
        marker, meter.worked = extract(
            run,
            name,
            checkpoint,
            store,
            target=target,
            dtype=dtype,
            context_length=context_length,
            overwrite=overwrite,
        )
    if not meter.worked:
        print(f"{store.url}: {name} already exported")
        return
    print(
        f"{store.url}: {name} exported and verified: {marker.counts['parameters'] / 1e6:.1f}M parameters in "
        f"{marker.settings['dtype']}, contexts up to {marker.settings['context_length']}; equal to the trained draft"
    )


if __name__ == "__main__":
    cli.run(main)
