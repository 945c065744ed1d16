"""The filter step: one shard of a dataset's rows, answered by the target, into the run's `answers/`.

look at the first rows -> wait for the server -> record the run -> take up what is finished -> answer the rest -> marker
"""

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from spec.conversations import tools
from spec.conversations.ids import RowIndex, Shard
from spec.conversations.lineage import read_run, record_run
from spec.conversations.mixes import Mix
from spec.conversations.parts import Parts, open_parts
from spec.conversations.regenerate import Question, answer_all
from spec.conversations.requests.sampling import checked
from spec.conversations.results import BY_CHOICE, Results
from spec.conversations.rows import Reject, Said, messages_in, said_in
from spec.conversations.selection import ALL, Selection
from spec.conversations.server import Sampling, Server
from spec.conversations.shapes import Read
from spec.conversations.shards import MARKER, folder_of, folders_present
from spec.conversations.sources import Source
from spec.conversations.survey import Survey, survey
from spec.costs.budget import check_cap
from spec.errors import BadInput, Stopped
from spec.progress import RowProgress, Wait
from spec.storage import Store
from spec.storage.markers import Marker, digest_of, find_marker, write_marker

STEP = "filter"
_FLUSH_SECONDS = 5.0
_CAP_SECONDS = 60.0  # as often as those who follow the servers record them
_OF_A_PART = BY_CHOICE | {"not_a_request", "not_chat", "no_column"}  # lines of a log, or a whole file among others
_REFUSALS = 20  # for each worker, before the first answer: more, and it is not the rows that are wrong


async def filter_shard(
    store: Store,
    source: Source | Mix,
    server: Server,
    shard: Shard,
    *,
    parallel: int,
    selection: Selection = ALL,
    overwrite: bool = False,
) -> tuple[Marker, bool]:
    """Answer the rows of `source` that belong to `shard`; gives the marker, and whether anything was to do.

    `selection` says which of them, and in what form. Called again after any end, it goes on: no finished row is asked
    again. Raises `BadInput` (at the run's cap of GPU-hours too), `PassingFault`, and
    `Stopped` after SIGTERM or SIGINT; what was finished by then is kept.
    `overwrite` replaces answers that were made with other settings, and keeps those that were made with these.
    """
    if server.sampling.keep_sampling and not source.holds_requests:
        raise BadInput(f"--keep-sampling: {source.lineage['name']} holds no requests, whose sampling could be kept")
    dataset = {**source.lineage, **selection.lineage}
    seen = survey(source, server.sampling.turns)
    if found := _finished_before(store, dataset, server, shard, seen):
        return found, False
    with _stopping_on_signals():
        async with server:
            with Wait(f"{server.url} to say what it serves"):
                target, version = await server.connect()
            run = record_run(
                store,
                target=target,
                dataset=dataset,
                sampling=_lineage(server.sampling, seen),
                server=version,
                tokenizer=server.tokenizer,
                overwrite=overwrite,
            )
            _check_other_shards(store, shard, overwrite)
            settings = {**run, "shard": str(shard)}
            folder = store.at(folder_of(shard))
            if found := find_marker(folder, MARKER, STEP, settings, {}, overwrite=overwrite):
                return found, False
            with open_parts(folder, digest_of(STEP, settings, {})) as parts:
                marker = await _answer_shard(store, parts, source, selection, server, shard, settings, parallel, seen)
                return marker, True


def _lineage(sampling: Sampling, seen: Survey) -> dict[str, Any]:
    """How the target answers, and what decides about rows with tools where there are any, or `turns` are given."""
    with_tools = seen.with_tools or sampling.turns != "all"
    policy = tools.POLICY | ({"calls_as_text": "read"} if seen.text_calls else {})
    return sampling.lineage | ({"tools": {**policy, "turns": sampling.turns}} if with_tools else {})


def _finished_before(
    store: Store, dataset: dict[str, Any], server: Server, shard: Shard, seen: Survey
) -> Marker | None:
    """The marker of this very work, found without the server, which may be gone once all is answered.

    Also one from before rows with tools were answered, which counts them as rejects, unless some of these are wanted;
    and one from before calls as text were read.
    """
    target = read_run(store).get("target", {})
    if server.model not in (None, target.get("model")):
        return None
    before = [server.sampling.lineage] if server.sampling.turns == "all" else []
    before += [_lineage(server.sampling, seen._replace(text_calls=0))] if seen.text_calls else []
    for sampling in (_lineage(server.sampling, seen), *before):
        settings = {"target": target, "dataset": dataset, "sampling": sampling, "shard": str(shard)}
        with suppress(BadInput):  # of other settings: what to say of it is known once the server is
            if found := find_marker(store.at(folder_of(shard)), MARKER, STEP, settings, {}):
                return found
    return None


async def _answer_shard(
    store: Store,
    parts: Parts,
    source: Source | Mix,
    selection: Selection,
    server: Server,
    shard: Shard,
    settings: dict[str, Any],
    parallel: int,
    seen: Survey,
) -> Marker:
    folder = store.at(folder_of(shard))
    index = RowIndex()
    results = Results(parts, doubt=_REFUSALS * parallel)
    try:
        results.restore(index)
    except BadInput as error:
        raise BadInput(f"{folder.url}: {error}") from error
    counts = results.counts
    before, tokens_before, started = counts["rows"], counts["completion_tokens"], time.monotonic()
    asked = len(server.sampling.variants) * server.sampling.samples  # of each row
    rows = None if source.total is None else round(source.total * selection.fraction / shard.of) * asked
    total = None if rows is None else round(rows * seen.lines)
    if seen.with_tools:
        print(seen.cost(rows), file=sys.stderr)

    with RowProgress("filter", total, rows="answers", rows_before=before, tokens_before=tokens_before) as progress:

        async def show() -> None:
            progress.update(
                counts["rows"], counts["completion_tokens"], rejects=results.rejects, in_flight=server.in_flight
            )

        def within_cap() -> None:
            check_cap(store, f"{counts['rows']} answers of shard {shard} are kept")

        try:
            async with asyncio.TaskGroup() as beside:
                others = [
                    beside.create_task(server.watch()),
                    beside.create_task(_every(1.0, show)),
                    beside.create_task(_every(_FLUSH_SECONDS, lambda: asyncio.to_thread(parts.flush))),
                    beside.create_task(_every(_CAP_SECONDS, lambda: asyncio.to_thread(within_cap))),
                ]
                await answer_all(
                    _questions(source, selection, shard, index, server.sampling, results),
                    server.chat,
                    results,
                    parallel=parallel,
                    keep_truncated=server.sampling.keep_truncated,
                )
                for task in others:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first_of(group) from group
        results.end()
        await show()

    seconds = time.monotonic() - started
    marker = Marker.of(
        STEP,
        settings,
        {},
        files=parts.files(),
        counts=dict(counts),
        facts={"seconds": round(seconds, 1), "rows_before": before},
    )
    return write_marker(folder, MARKER, marker)


def _questions(
    source: Source | Mix, selection: Selection, shard: Shard, index: RowIndex, sampling: Sampling, results: Results
) -> Iterator[Question]:
    """The shard's rows that are not finished, once for each variant and sample, and of rows with tools each answer.

    All of one row are in one shard, and the first user message, which decides what is held out, is theirs in common.
    """
    for read in source.read():
        row_hash = read.hash(sampling=sampling.keep_sampling)
        if not (shard.holds(row_hash) and selection.holds(row_hash)):
            continue
        row_id = index.next_id(row_hash)
        asked = _asked(read, selection, sampling, again=not row_id.endswith("-0"))
        for variant, sample in itertools.product(range(len(sampling.variants)), range(sampling.samples)):
            several = len(sampling.variants) > 1
            name = row_id + (f".v{variant}" if several else "") + (f".s{sample}" if sampling.samples > 1 else "")
            for turn, its in asked:
                if index.is_finished(name + turn):
                    continue
                if not (isinstance(its, Reject) and its.bucket in _OF_A_PART):
                    results.expect(name + turn)
                yield Question(name + turn, its, variant if several else None, sample)


def _asked(
    read: Read, selection: Selection, sampling: Sampling, *, again: bool
) -> list[tuple[str, list[Said] | tools.Exchange | Reject]]:
    """What to ask of a row, each with what it adds to the row's name; one reject where there is nothing to ask."""
    try:
        row = selection.chosen(read, again=again)
        messages = messages_in(row, read.column)
        if read.is_request:
            own = checked(row.get("sampling")) if sampling.keep_sampling else None
            return [("", tools.of_request(row, messages, own))]
        if not tools.has_tools(row, messages):
            return [("", [said_in(message) for message in messages])]
        trace = tools.read_trace(row, messages)
        return [(f".t{exchange.number}", exchange) for exchange in tools.exchanges(trace, sampling.turns)]
    except Reject as reject:
        return [("", reject)]


def _check_other_shards(store: Store, shard: Shard, overwrite: bool) -> None:
    """Shards of another number hold the same rows once more: one run has one number."""
    others = {folder: other for folder, other in folders_present(store).items() if other.of != shard.of}
    if others and not overwrite:
        there = min(others.values())
        raise BadInput(
            f"{store.url}/answers holds shards of {there.of}, asked is one of {shard.of}: use --shard I/{there.of}, "
            f"another --output, or --overwrite to replace them"
        )
    for folder in others:
        for entry in store.list(folder):
            store.delete(entry.key)


async def _every(seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await action()


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT cancel the current task, and come out as `Stopped`; a second one changes nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stops = iter([task.cancel])
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: next(stops, lambda: None)())
    try:
        yield
    except asyncio.CancelledError as error:
        raise Stopped("stopped; what is finished is kept: run the same command to go on") from error
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
