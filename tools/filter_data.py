"""Regenerate a dataset's answers with the target itself, through its server.

    python3 tools/filter_data.py --dataset-name HuggingFaceH4/ultrachat_200k --dataset-split train_sft --parallel 128

Run the same command again after any end: it goes on where it stopped, and ends at once when all is done.
"""

import asyncio
import re
import signal
from typing import Annotated

from typer import Option

from spec import cli
from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.lineage import read_run
from spec.conversations.mixes import as_begun, named, opened
from spec.conversations.options import sampling_of
from spec.conversations.selection import select
from spec.conversations.server import Server
from spec.costs.meter import Meter
from spec.errors import Stopped
from spec.storage import open_store


def main(
    dataset_name: Annotated[
        list[str],
        Option(
            help="""A dataset of the hub; a local or s3:// .jsonl, .json, .parquet or .arrow file; a save_to_disk
            folder; requests: SGLang's .log files, an OpenAI batch file, a gateway's .jsonl. Several times: a mix."""
        ),
    ],
    weights: Annotated[
        str, Option(help="The mix: a number for each --dataset-name, as '2 1'; shares of the rows.")
    ] = "",
    glob: Annotated[
        bool, Option("--glob", help="Read *, ? and [...] in a --dataset-name as a pattern of files, not as a name.")
    ] = False,
    dataset_split: Annotated[
        list[str] | None, Option(help="The dataset's split; in a mix one for all, or one each. Default: train.")
    ] = None,
    dataset_config: Annotated[
        list[str] | None, Option(help="The dataset's configuration, where it has several; in a mix as above.")
    ] = None,
    dataset_revision: Annotated[
        list[str] | None, Option(help="A commit or branch of the hub. Default: the newest when the run is begun.")
    ] = None,
    column: Annotated[
        list[str] | None,
        Option(help="The column to read; of requests where their body is (. is the line itself). Default: looked for."),
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first rows of the source (counted before sharding).")] = None,
    fraction: Annotated[float, Option(help="The share of the rows to ask, chosen by their content.")] = 1.0,
    leave_out: Annotated[
        list[str] | None,
        Option(
            help="""A file of prompts (a run's held-out prompts) or a suite by name (mt-bench, gsm8k, humaneval,
            math500; NAME=FILE without a hub) that no row may hold; several times."""
        ),
    ] = None,
    scrub: Annotated[
        str | None,
        Option(help="MODULE:FUNCTION from here: it gets each row, and gives it scrubbed, or None to drop it."),
    ] = None,
    keep_sampling: Annotated[
        bool, Option("--keep-sampling", help="Ask each request with its own sampling parameters, where it has some.")
    ] = False,
    output: Annotated[
        str | None, Option(help="The run: a directory or s3://BUCKET/PREFIX. Default: runs/ and the dataset's name.")
    ] = None,
    shard: Annotated[str, Option(help="I/N: the rows of part I, counted from 0, of N.")] = "0/1",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace answers made with other settings.")] = False,
    base_url: Annotated[str, Option(help="The server. A key for it is read from SGL_SPEC_API_KEY.")] = (
        "http://127.0.0.1:30000"
    ),
    model: Annotated[str | None, Option(help="The model that must be served. Default: what the server names.")] = None,
    parallel: Annotated[int, Option(min=1, help="Requests kept in flight.")] = 128,
    temperature: Annotated[float, Option(min=0.0, help="0 for the target's greedy answers.")] = 0.0,
    max_tokens: Annotated[
        int, Option(min=1, help="Of one answer; a longer one is cut off, and the row rejected.")
    ] = 2048,
    keep_truncated: Annotated[
        bool, Option("--keep-truncated", help="Keep an answer that was cut off, without an end of turn.")
    ] = False,
    seed: Annotated[
        int | None, Option(help="For temperatures above 0; the server needs --enable-deterministic-inference.")
    ] = None,
    samples: Annotated[
        int, Option(min=1, max=999, help="Answers to each prompt, each a row; needs a temperature above 0.")
    ] = 1,
    turns: Annotated[str, Option(help="Answers to ask for of each row with tools: all, last, or the last N.")] = "all",
    chat_template_kwargs: Annotated[
        list[str] | None,
        Option(
            help="""JSON for the target's chat template, for example '{"enable_thinking": false}' or
            '{"reasoning_effort": "low"}'. Several times: each row once for each."""
        ),
    ] = None,
    patience: Annotated[float, Option(min=1, help="Seconds without any answer after which this ends with 75.")] = 300.0,
    request_timeout: Annotated[float, Option(min=1, help="Seconds that one answer may take.")] = 1800.0,
) -> None:
    """Regenerate a dataset's answers with the target itself, through its server."""
    signal.signal(signal.SIGTERM, _stop)
    datasets = named(
        dataset_name,
        weights,
        splits=dataset_split or (),
        configs=dataset_config or (),
        revisions=dataset_revision or (),
        columns=column or (),
    )
    store = open_store(output or f"runs/{'+'.join(_slug(dataset.name) for dataset in datasets)}")
    datasets = as_begun(datasets, read_run(store).get("dataset", {}))
    sampling = sampling_of(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        chat_template_kwargs=chat_template_kwargs,
        keep_truncated=keep_truncated,
        samples=samples,
        turns=turns,
        keep_sampling=keep_sampling,
    )
    server = Server(base_url, sampling, model=model, patience=patience, request_timeout=request_timeout)
    part = Shard.parse(shard)
    selection = select(fraction=fraction, leave_out=leave_out, scrub=scrub)
    with opened(datasets, pattern=glob, limit=limit) as source, Meter(store, "filter") as meter:
        filtering = filter_shard(
            store, source, server, part, parallel=parallel, selection=selection, overwrite=overwrite
        )
        marker, meter.worked = asyncio.run(filtering)
    counts = ", ".join(f"{name} {count}" for name, count in marker.counts.items())
    print(f"{store.url}: shard {shard} {'done' if meter.worked else 'already done'}: {counts}")


def _slug(dataset_name: str) -> str:
    last = dataset_name.rstrip("/").split("/")[-1]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.(jsonl?|parquet|arrow|log|log\.[\d_*-]+)$", "", last))
    return "run" if plain in ("", "-") else plain


def _stop(*_: object) -> None:
    raise Stopped("stopped before anything was asked: run the same command again")


if __name__ == "__main__":
    cli.run(main)
