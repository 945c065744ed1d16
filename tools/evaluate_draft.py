"""Measure what a run's draft is worth: accept length offline and on SGLang, and tokens/s with the draft and without.

    python3 tools/evaluate_draft.py RUN --target TARGET                          # here, without a server
    python3 tools/evaluate_draft.py RUN --target TARGET --baseline-url URL       # SGLang without the draft
    python3 tools/evaluate_draft.py RUN --target TARGET --base-url URL           # SGLang with the draft
    python3 tools/evaluate_draft.py RUN --target TARGET --baseline-url URL --base-url URL     # both in turn
    python3 tools/evaluate_draft.py RUN --target TARGET --draft hf://ORG/NAME    # of a draft that others published
    python3 tools/evaluate_draft.py RUN --target TARGET --suite mt-bench,gsm8k,humaneval,math500    # suites too
    python3 tools/evaluate_draft.py RUN --target TARGET --max-regression 0.02 --against s3://BUCKET/PREFIX

Each call keeps what it measures in RUN/report; in any order, or several at once. When all parts are there, report.json
says whether the draft reaches the bar; this ends with 3 if it does not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from spec import cli
from spec.costs.meter import Meter, gpus_of
from spec.errors import BadInput, BelowBar
from spec.evaluation.gate import Bar, gate
from spec.evaluation.parts import NAMES
from spec.evaluation.regression import is_same
from spec.evaluation.settings import OfSuites, Settings
from spec.progress import Wait
from spec.publishing.standing import NONE, standing
from spec.report import card
from spec.report import page as report
from spec.report.evidence import gather
from spec.report.verdict import verdict
from spec.storage import open_store

if TYPE_CHECKING:
    from spec.evaluation.step import Evaluation
    from spec.evaluation.suites import Suites

_HOW = {"offline": "without a URL", "baseline": "with --baseline-url", "speculative": "with --base-url"}


def main(
    run: Annotated[str, Argument(help="The run: a directory or s3://BUCKET/PREFIX.")],
    target: Annotated[Path, Option(help="The target's directory.")],
    base_url: Annotated[str | None, Option(help="An SGLang server with the draft.")] = None,
    baseline_url: Annotated[str | None, Option(help="An SGLang server of the same target without a draft.")] = None,
    min_accept_length: Annotated[float | None, Option(min=1.0, help="The bar: below it, this ends with 3.")] = None,
    min_speed_up: Annotated[
        float, Option(min=0.0, help="The bar of speed: tokens/s with the draft over those without. 0: none.")
    ] = 0.0,
    at_concurrency: Annotated[
        int, Option(min=0, help="The load of that bar, in requests at once; both servers are asked at it.")
    ] = 0,
    prompts: Annotated[
        int | None, Option(min=1, help="Held-out prompts to ask, at most. Default: 32, or the load if it is higher.")
    ] = None,
    max_new_tokens: Annotated[int, Option(min=2, help="Tokens an answer may have.")] = 128,
    drafts: Annotated[
        int, Option("--drafts", "--num-steps", min=1, help="Drafts a round, as the server was started with.")
    ] = Settings.drafts,
    concurrency: Annotated[
        int | None, Option(min=1, help="Requests at once to a server. Default: the bar's load, else 8.")
    ] = None,
    without: Annotated[
        list[str] | None, Option(help="A part that the report does without: offline, baseline or speculative.")
    ] = None,
    temperature: Annotated[
        float, Option(min=0.0, help="Of the answers, here and on servers. 0: greedy, and their tokens are compared.")
    ] = 0.0,
    device: Annotated[
        str | None, Option(help="Of the offline part: cpu or cuda. Default: cuda if it is there.")
    ] = None,
    max_regression: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Worse than the published draft by more than this fraction and the spread ends with 3. 1: no bar.",
        ),
    ] = None,
    against: Annotated[str | None, Option(help="Where that draft is published, as for tools/publish_draft.py.")] = None,
    against_version: Annotated[
        str, Option(help="Its version, or `none` where there is none yet. Default: the latest.")
    ] = "",
    published_url: Annotated[
        str | None, Option(help="An SGLang server with that draft, to compare speeds too; or `none`.")
    ] = None,
    draft: Annotated[
        str | None,
        Option(
            help="A draft that is published, brought to RUN/draft first: hf://ORG/NAME, s3://BUCKET/PREFIX, a folder."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        Option(
            help="""Suites too, with commas or several times: mt-bench, gsm8k, humaneval, math500 (NAME=FILE: its rows
            from a file), a file of your own, or own: the held-out prompts, which are always asked."""
        ),
    ] = None,
    suite_prompts: Annotated[
        int, Option(min=0, help="Prompts of a suite, at most. 0: as many as published figures were measured with.")
    ] = 0,
    suite_tokens: Annotated[
        int, Option(min=0, help="Tokens an answer to a suite may have. 0: as published figures were measured with.")
    ] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Measure again what is measured; replace a report.")] = False,
) -> None:
    """Measure what a run's draft is worth."""
    if unknown := set(without or ()) - set(NAMES):
        raise BadInput(f"--without {min(unknown)}: the parts are {', '.join(NAMES)}")
    if (max_regression is None) != (not against):
        raise BadInput("--max-regression and --against go together: a bar, and the place whose draft sets it")
    if max_regression == 1:
        max_regression = against = None
    bar = Bar(min_accept_length, min_speed_up or None, at_concurrency or None, max_regression)
    if at_concurrency and concurrency not in (None, at_concurrency):
        raise BadInput(
            f"--at-concurrency {at_concurrency} wants the servers asked at it, not --concurrency {concurrency}"
        )
    if min_speed_up and {"baseline", "speculative"} & set(without or ()):
        raise BadInput("--min-speed-up wants a server with the draft and one without; leave out --without")
    with Wait("importing torch and transformers"):  # here: preflight reads this command's options without them
        from spec.evaluation.step import Evaluation
        from spec.evaluation.suites import Suites
        from spec.publishing.adopt import bring
        from spec.ranks import usable
    load = concurrency or at_concurrency or None
    count = prompts or max(Settings.prompts, load or 0)
    settings = Settings(count, max_new_tokens, drafts, load, frozenset(without or ()), temperature)
    if draft:
        bring(open_store(run), draft, target, overwrite=overwrite)
    its = standing(open_store(run), against, against_version) if against else None
    evaluation = Evaluation(open_store(run), target, settings, overwrite=overwrite, standing=its)
    wanted = [name for names in suite or () for name in names.split(",") if name]
    shortened = OfSuites(suite_prompts or None, suite_tokens or None, max_new_tokens)
    suites = Suites(evaluation, wanted, shortened, overwrite=overwrite)
    servers = Servers(base_url, baseline_url, None if published_url in ("", NONE) else published_url)
    device = usable(device)
    with Meter(open_store(run), "evaluate", **gpus_of(device)) as meter:
        meter.worked = False
        _measure(evaluation, servers, device, bar, meter, overwrite)
        try:
            asked = _measure_suites(suites, servers, device)
        finally:
            meter.worked |= suites.worked
    _show(evaluation)
    _show_suites(asked)
    _conclude(evaluation, bar)


class Servers(NamedTuple):
    """Where they are; None: not asked."""

    base: str | None  # with the draft
    baseline: str | None  # without
    published: str | None  # with the draft that is to be replaced


def _measure(evaluation: "Evaluation", servers: Servers, device: str, bar: Bar, meter: Meter, overwrite: bool) -> None:
    """Each part that these servers, or none, can give, and that is not there yet."""
    its = evaluation.standing
    compares = its is not None and not is_same(its, evaluation.draft)

    def needed(part: str) -> bool:
        if part in evaluation.settings.without or (part in evaluation.parts and not overwrite):
            return False
        meter.worked = True
        return True

    if (servers.base or not servers.baseline) and needed("offline"):
        evaluation.measure_offline(device)
    if compares and "offline" in evaluation.parts and needed("published_offline"):
        evaluation.measure_standing(device)
    if not servers.base and "offline" in evaluation.parts and "speculative" in evaluation.missing:
        # A server would say the same of its accept length.
        facts = {"offline": evaluation.parts["offline"]}
        if bar.max_regression is not None:
            facts["published"] = evaluation.compared()
        _refuse_below(gate(facts, Bar(bar.accept_length, max_regression=bar.max_regression)))
    if servers.baseline and servers.base and needed("baseline") and needed("speculative"):
        evaluation.measure_in_turn(servers.baseline, servers.base)
    elif servers.baseline and needed("baseline"):
        evaluation.measure_baseline(servers.baseline)
    elif servers.base and needed("speculative"):
        evaluation.measure_speculative(servers.base)
    if servers.published and compares and needed("published_speculative"):
        evaluation.measure_standing_speculative(servers.published)


def _measure_suites(suites: "Suites", servers: Servers, device: str) -> list[dict]:
    """By the server with the draft, or here where no server is asked."""
    if servers.base:
        return suites.measure_served(servers.base)
    return [] if servers.baseline else suites.measure_offline(device)


def _conclude(evaluation: "Evaluation", bar: Bar) -> None:
    """The report, once all of its parts are there; below the bar this ends with 3."""
    run = evaluation.run.url
    if evaluation.missing:
        needs = " and ".join(f"{part} ({_HOW[part]})" for part in evaluation.missing)
        print(f"{run}: kept {', '.join(evaluation.parts) or 'nothing'}; no report yet, it needs {needs}")
        return
    marker = evaluation.conclude(bar)
    card.write(evaluation.run)
    report.write(evaluation.run)
    _refuse_below(marker.facts["gate"])
    print(f"{run}: {marker.facts['gate']['why']}; see {run}/{report.PAGE}")
    if words := verdict(gather(evaluation.run)):
        print(words)


def _refuse_below(judged: dict) -> None:
    if not judged["passed"]:
        raise BelowBar(f"the draft is not good enough: {judged['why']}")


def _show(evaluation: "Evaluation") -> None:
    """The figures, a row a part."""
    table = Table("", "accept length", "95%", "kept at 1, 2, ..", "tokens/s", "at once (most)", "same tokens")
    for name in evaluation.parts:
        part = evaluation.parts[name]
        same = part.get("tokens_equal", part.get("tokens_equal_baseline"))
        between = " to ".join(f"{end:.2f}" for end in part.get("interval") or ())
        table.add_row(
            name,
            f"{part['accept_length']:.3f}" if "accept_length" in part else "",
            between,
            " ".join(f"{share:.2f}" for share in part.get("acceptance_by_position", [])),
            f"{part['tokens_per_s']:.0f}" if "tokens_per_s" in part else "",
            f"{part['concurrency']} ({part['server'].get('max_running_requests') or '?'})" if "server" in part else "",
            _same_tokens(part, same),
        )
        if name == "offline":
            table.add_row("untrained", f"{part['untrained_accept_length']:.3f}")
    Console().print(table)


def _same_tokens(part: dict, same: bool | None) -> str:
    if same is None:
        return f"sampled at {part['temperature']:g}" if "temperature" in part else ""
    return "yes" if same else f"{len(part['differ'])} of {part['prompts']} differ"


def _show_suites(measured: list[dict]) -> None:
    """A row a suite and turn."""
    table = Table("suite", "turn", "answers", "accept length", "95% interval", "trained on", "too long")
    for facts in measured:
        left_out = ["not known" if facts["trained_on"] is None else str(facts["trained_on"]), str(facts["too_long"])]
        for at, one in enumerate([facts, *(facts["by_turn"] if len(facts["by_turn"]) > 1 else ())]):
            between = " to ".join(f"{end:.2f}" for end in one["interval"] or ())
            row = [str(one.get("turn", "all")), str(one["answers"]), f"{one['accept_length']:.3f}", between]
            table.add_row("" if at else facts["title"], *row, *(left_out if not at else ()))
    if measured:
        Console().print(table)


if __name__ == "__main__":
    cli.run(main)
