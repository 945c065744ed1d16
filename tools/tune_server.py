"""Find out at which loads a draft is worth serving, and with how many drafts a round.

    python3 tools/tune_server.py RUN --target TARGET --concurrency 1,4,16 --drafts 1,3,5,7     # SGLang on this CPU
    python3 tools/tune_server.py RUN --target TARGET --baseline-url URL --base-url 3=URL --base-url 5=URL

Each number of drafts has a server of its own, measured in turn with the one without the draft, on the held-out prompts.
Settings that cannot win, by what rounds accept and cost, are left out and named. Killed, the same call goes on. At the
end RUN/report has sweep.json, sweep.svg and the page with both, and the card, draft.json and fetch_draft.py the flags.
"""

import json
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from spec import cli
from spec.costs.meter import Meter
from spec.errors import BadInput
from spec.methods import method_of
from spec.methods.files import exported
from spec.methods.method import ADAPTIVE, Drafts
from spec.progress import Wait
from spec.report import card
from spec.report import page as report
from spec.report import sweep as picture
from spec.report.command import context_flags
from spec.server.start import sglang_on_cpu
from spec.storage import Store, open_store
from spec.storage.markers import Json
from spec.tuning.arithmetic import a_round, words
from spec.tuning.settings import Settings, drafts_of, numbers

if TYPE_CHECKING:
    from spec.tuning.sweep import Open, Sweep

DRAFTS = (1, 3, 5, 7)
PARTS = (None, "left", "measure", "join")  # of a sweep that several processes share


def main(
    run: Annotated[str, Argument(help="The run: a directory or s3://BUCKET/PREFIX.")],
    target: Annotated[Path, Option(help="The target's directory.")],
    concurrency: Annotated[str, Option(help="Loads: requests at once, as 1,4,16.")] = "1,4,16",
    drafts: Annotated[
        str, Option(help="Drafts a round, as 1,3,adaptive. Default: 1,3,5,7, as far as the draft has learnt.")
    ] = "",
    base_url: Annotated[
        list[str] | None,
        Option(help="DRAFTS=URL, as 3=URL: a server with the draft at so many a round; for each of --drafts."),
    ] = None,
    baseline_url: Annotated[str | None, Option(help="A server of the same target without the draft.")] = None,
    rounds: Annotated[int, Option(min=1, help="Times that each server is asked everything.")] = Settings.rounds,
    prompts: Annotated[
        int | None, Option(min=1, help="Held-out prompts to ask, at most. Default: 32, or the highest load.")
    ] = None,
    max_new_tokens: Annotated[int, Option(min=2, help="Tokens an answer may have.")] = Settings.max_new_tokens,
    server_options: Annotated[str, Option(help="More flags of the servers that are started here.")] = "",
    overwrite: Annotated[bool, Option("--overwrite", help="Measure again what is measured.")] = False,
    only: Annotated[
        str | None,
        Option(help="left: say which of --drafts are to be measured yet; measure; join: conclude. Default: all of it."),
    ] = None,
    left_to: Annotated[Path | None, Option(help="With --only left: a file for what is said, a JSON list.")] = None,
) -> None:
    """Measure RUN's draft over loads and drafts a round, and recommend how to serve it."""
    store = open_store(run)
    loads, urls = numbers("--concurrency", concurrency), urls_of(base_url or [])
    if bool(urls) != bool(baseline_url):
        raise BadInput("--base-url and --baseline-url go together: a draft is measured beside the server without it")
    wanted = drafts_of("--drafts", drafts) if drafts else tuple(urls) or learnt(store)
    if urls and (missing := [count for count in wanted if count not in urls]):
        raise BadInput(f"--drafts {missing[0]}: no --base-url {missing[0]}=URL says where it is served")
    if only not in PARTS:
        raise BadInput(f"--only {only}: left, measure or join")
    flags = words_of("--server-options", server_options)
    settings = Settings(
        loads, wanted, rounds, prompts or max(Settings.prompts, *loads), max_new_tokens, shlex.join(flags)
    )
    with Wait("importing torch and transformers"):  # here: preflight reads this command's options without them
        from spec.evaluation.drafts import verified_draft
        from spec.tuning.sweep import Sweep
    sweep = Sweep(store, target, settings, overwrite=overwrite and only is None)
    if overwrite and only == "left":  # the first of the processes: those after it go on with what they measure
        sweep.forget()
    if only in ("left", "join"):
        left = sweep.left()
        if only == "left":
            (left_to or Path("/dev/stdout")).write_text(json.dumps(left) + "\n")
            return
        if left:
            raise BadInput(f"{run}: not measured yet: {', '.join(map(a_round, left))}; measure that first")
    else:
        with verified_draft(store.at("draft"), sweep.draft, target) as folder, Meter(store, "tune"):
            given = {**urls, 0: baseline_url or ""}
            start = starting(target, folder, sweep, flags)
            sweep.measure((lambda count: nullcontext(given[count])) if urls else start, folder)
        if only == "measure":
            return
    marker = sweep.conclude()
    picture.write(store)
    card.write(store)
    report.write(store)
    show(marker.facts)
    print(f"{run}: {words(marker.facts['recommended'])}; see {run}/{report.PAGE}")


def starting(target: Path, draft: Path, sweep: "Sweep", flags: list[str]) -> "Open":
    """Servers on this machine's CPU, as many requests at once as the highest load; SGLang on GPUs is given by URL."""
    logs = (sweep.run.local_path() or draft) / "logs"
    most = max(sweep.settings.loads)
    context = [word for pair in context_flags(sweep.draft).items() for word in pair]

    def start(drafts: Drafts) -> AbstractContextManager[str]:
        name = f"tune-{drafts}-drafts" if drafts else "tune-without"
        what = a_round(drafts) if drafts else "without the draft"
        print(f"starting SGLang on CPU, {what}; its log is {logs / name}.log", flush=True)
        environment = {"MAX_RUNNING_REQUESTS": str(most), "DRAFT_STEPS": str(drafts)}
        return sglang_on_cpu(
            target,
            draft if drafts else None,
            log=logs / f"{name}.log",
            flags=(*context, *flags),
            environment=environment,
        )

    return start


def learnt(run: Store) -> tuple[Drafts, ...]:
    config = exported(run.at("draft")).facts["config"]
    most = method_of(config).most_drafts(config)
    return tuple(count for count in DRAFTS if most is None or count <= most)


def urls_of(given: list[str]) -> dict[Drafts, str]:
    found: dict[Drafts, str] = {}
    for word in given:
        count, _, url = word.partition("=")
        if not url or not (count == ADAPTIVE or count.isdecimal() and int(count)):
            raise BadInput(f"--base-url {word.rpartition('@')[2]}: it reads like 3=http://127.0.0.1:30000")
        found[ADAPTIVE if count == ADAPTIVE else int(count)] = url
    return found


def words_of(option: str, text: str) -> list[str]:
    """As a shell splits them. `BadInput` begins with `option`."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(f"{option} {text}: {str(error).lower()}") from error


def show(facts: Json) -> None:
    table = Table("drafts", "at once", "tokens/s", "without", "speed-up", "accepts", "costs")
    for one in facts["measured"]:
        faster = one["speed_up"]
        table.add_row(
            str(one["drafts"]),
            str(one["concurrency"]),
            f"{one['drafted']['tokens_per_s'][0]:.1f}",
            f"{one['plain']['tokens_per_s'][0]:.1f}",
            f"{faster[0]:.2f} ({faster[1]:.2f} to {faster[2]:.2f})",
            f"{one['accepts']:.2f}",
            f"{one['costs'][0]:.2f}",
        )
    for one in facts["skipped"]:
        table.add_row(str(one["drafts"]), str(one["concurrency"]), "", "", f"at most {one['at_most']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
