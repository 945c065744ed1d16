"""Make training samples of a run's answers: token ids, loss masks, and the draft's vocabulary.

    python3 tools/prepare_data.py RUN --tokenizer TARGET

Prints a sample: what is coloured bears loss, and nothing else may be. Run the same command again after any end.
"""

import os
import signal
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from spec import cli
from spec.conversations.lineage import read_run
from spec.conversations.shards import EXACT
from spec.costs.budget import read_budget
from spec.costs.estimate import check_cap, of_training, tokens_of, tokens_trained
from spec.costs.meter import Meter
from spec.errors import BadInput, Stopped
from spec.samples.prepare import Settings, Tolerance, prepare
from spec.samples.show import show
from spec.storage import open_store
from spec.storage.markers import Marker


def main(
    run: Annotated[str, Argument(help="The run: a directory or s3://BUCKET/PREFIX, with its answers.")],
    tokenizer: Annotated[
        str | None,
        Option("--tokenizer", "--target", help="The target's directory. Default: the model that answered (run.json)."),
    ] = None,
    max_length: Annotated[int, Option(min=8, help="Tokens of a row; see --truncate.")] = Settings.max_length,
    truncate: Annotated[
        bool, Option("--truncate", help="Cut longer rows at their end. Default: reject their conversation.")
    ] = False,
    held_out: Annotated[
        float, Option(min=0, help="Kept out of training: a share of the prompts, or from 1 a number of conversations.")
    ] = Settings.held_out,
    draft_vocab_size: Annotated[
        int, Option(min=1, help="Tokens that the draft can say, the most frequent ones.")
    ] = Settings.draft_vocab_size,
    max_empty: Annotated[
        float, Option(min=0, max=1, help="Share of conversations without a loss-bearing token above which this fails.")
    ] = Tolerance.empty_mask,
    max_retokenised: Annotated[
        float,
        Option(min=0, max=1, help="Share of conversations that read back as other tokens above which this fails."),
    ] = Tolerance.retokenised_differently,
    trust_day: Annotated[
        bool,
        Option(
            "--trust-day",
            help="""Text answers, and a chat template that writes today's date: take the day that the server told with
            each (its clock, in UTC or this machine's zone). Default: refuse.""",
        ),
    ] = False,
    processes: Annotated[int | None, Option(min=1, help="Default: one a core.")] = None,
    examples: Annotated[int, Option("--show", min=0, max=3, help="Samples to print.")] = 1,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace samples made otherwise.")] = False,
) -> None:
    """Make training samples of a run's answers: token ids, loss masks, and the draft's vocabulary."""
    signal.signal(signal.SIGTERM, _stop)
    store = open_store(run)
    filtered = read_run(store)
    answered_by = filtered.get("target", {})
    target = tokenizer or answered_by.get("model")
    if target is None:
        raise BadInput(f"{store.url}: no run.json, so no answers; run tools/filter_data.py first")
    settings = Settings(
        chat_template_kwargs=filtered.get("sampling", {}).get("chat_template_kwargs") or {},
        max_length=max_length,
        truncate=truncate,
        held_out=held_out,
        draft_vocab_size=draft_vocab_size,
    )
    with Meter(store, "prepare") as meter:
        marker, meter.worked = prepare(
            store,
            target,
            settings,
            revision=answered_by.get("revision") if tokenizer is None else None,
            tolerance=Tolerance(max_empty, max_retokenised, trust_day),
            processes=processes or len(os.sched_getaffinity(0)),
            overwrite=overwrite,
        )
    _print(store.url, marker, meter.worked, examples)
    budget = read_budget(store)
    if budget.max_gpu_hours:  # the tokens are known only now
        left = of_training(budget.training, tokens_of(store, (0, None)), tokens_trained(store))
        print(check_cap(store, budget, left))


def _print(url: str, marker: Marker, worked: bool, examples: int) -> None:
    console = Console()
    for example in marker.facts["examples"][:examples]:
        console.rule("a sample: loss on " + ("what is green" if console.is_terminal else "what is between ⟦ and ⟧"))
        show(example, console)
        console.rule()
    train = marker.facts["train"]
    kinds = train.get("loss_by_kind", {})
    of = ", ".join(f"{count / sum(kinds.values()):.0%} {name}" for name, count in kinds.items())
    counts = ", ".join(f"{name} {count}" for name, count in marker.counts.items())
    print(f"{url}/samples: {'done' if worked else 'already done'}: {counts}")
    if 0 < (exact := marker.facts.get(EXACT, 0)) < marker.counts["answers"]:
        print(f"two kinds of rows: {exact} are the server's own tokens, the others text rendered by the chat template")
    print(
        f"{train['rows']} rows, {train['tokens']} tokens, {train['loss_share']:.0%} of them bear loss"
        f"{f' ({of})' if len(kinds) > 1 else ''}; "
        f"the draft's {marker.settings['draft_vocab_size']} tokens cover {train['vocabulary_coverage']:.1%} of those"
    )


def _stop(*_: object) -> None:
    raise Stopped("stopped, nothing is kept of unfinished samples: run the same command again")


if __name__ == "__main__":
    cli.run(main)
