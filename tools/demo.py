"""The whole thread on one machine: real prompts and a real model in, a proven and published draft out.

Every step is a command of the README, printed before it runs. Started again, each finds its marker and is done.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, NamedTuple

import boto3
import typer
from botocore.exceptions import EndpointConnectionError
from rich.console import Console
from rich.table import Table

from spec import cli
from spec.errors import PassingFault, SpecError
from spec.evaluation.gate import at_once
from spec.methods import method_named
from spec.progress import Wait
from spec.publishing.drafts import place_of
from spec.report.evidence import gather
from spec.report.verdict import verdict
from spec.server import start as serving
from spec.storage import Store, open_store
from spec.storage.markers import Json, Marker, find_marker, read_marker, write_marker
from spec.tuning.arithmetic import a_round

ROOT = Path(__file__).parents[1]
MARKER, SWEPT = "demo.json", "demo-sweep.json"  # without a sweep, with one
BUCKET = "drafts"
HELD_OUT = 32  # conversations that training never sees
COPIES = 2  # of the model in the server that answers the prompts, 3 GB each
IDLE = "http://127.0.0.1:30000"  # SGLang's own default; named where no step is left that asks a server
NAME = "smollm2-135m-instruct"


class Way(NamedTuple):
    """How a method goes through the demo."""

    config: str  # as its file is named
    drafts: int  # a round
    bar: float  # the gate
    trained_for: tuple[str, ...] = ()  # a setting that says the drafts; a block is as long as its config says


WAYS = {
    "eagle3": Way("eagle", 2, 1.5, ("steps=2",)),  # on a CPU the third costs a chain more than it gains
    "dflash": Way("dflash", 3, 1.1),  # block drafts want more answers than the demo has
    "dspark": Way("dspark", 3, 1.2),
}
console = Console()


def main(
    run: Annotated[Path, typer.Option(help="The run directory")] = Path("runs/demo"),
    method: Annotated[str, typer.Option(help="eagle3, dflash or dspark")] = "eagle3",
    rows: Annotated[int, typer.Option(help="Prompts to regenerate answers for, at most 1902")] = 900,
    answer_tokens: Annotated[int, typer.Option(help="Tokens an answer may have")] = 64,
    processes: Annotated[int, typer.Option(help="Trainer processes")] = 2,
    min_accept_length: Annotated[
        float | None, typer.Option(help="The gate: a draft below it is not published. Default: the method's")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also measure loads and drafts a round: minutes more")] = False,
) -> None:
    """Filter, prepare, train, extract, evaluate and publish a draft of SmolLM2-135M-Instruct."""
    method_named(method)
    way = WAYS[method]
    min_accept_length, drafts = min_accept_length or way.bar, way.drafts
    os.chdir(ROOT)
    started, store = time.monotonic(), open_store(run)
    settings: Json = {"method": method, "rows": rows, "answer_tokens": answer_tokens, "drafts": drafts}
    settings["min_accept_length"] = min_accept_length
    for name in (SWEPT,) if sweep else (MARKER, SWEPT):
        if done := find_marker(store, name, "demo", settings, {}):
            return show(done.facts, f"already done: {store.url}")
    inputs = run.parent / "demo-inputs"
    model = inputs / "SmolLM2-135M-Instruct"  # as demo_inputs.py calls it: the card of the draft says so
    logs = run / "logs"
    step("inputs", "tools/demo_inputs.py", inputs)
    evaluate = ["tools/evaluate_draft.py", run, "--target", model, "--prompts", HELD_OUT, "--drafts", drafts]
    evaluate += ["--max-new-tokens", answer_tokens, "--min-accept-length", min_accept_length]

    with served_unless((run / "samples/samples.json").exists(), model, logs / "server-target.log") as url:
        step(
            "filter",
            *["tools/filter_data.py", "--dataset-name", inputs / "prompts.jsonl", "--output", run, "--base-url", url],
            *["--model", model, "--limit", rows, "--parallel", 128, "--max-tokens", answer_tokens, "--keep-truncated"],
        )
        prepare = ["tools/prepare_data.py", run, "--tokenizer", model, "--held-out", HELD_OUT]
        step("prepare", *prepare, "--draft-vocab-size", 4096, "--max-length", 256)

    recipe = [
        "spec/eagle_full_finetune_distributed.py",
        "--config",
        f"spec/configs/smollm2/135M_{way.config}.yaml",
    ]
    recipe += [f"run_dir={run}", f"target={model}", *way.trained_for]
    step("train", "tune", "run", "--nproc_per_node", processes, *recipe)
    step("extract", "tools/extract_draft_model.py", "--checkpoint_dir", run / "checkpoints", "--target", model)
    step("offline", *evaluate)
    tune = ["tools/tune_server.py", run, "--target", model, "--concurrency", "1,8", "--prompts", 8]
    tune += ["--max-new-tokens", answer_tokens // 2]
    served = (run / "report/sweep.json").exists()
    with both_served_unless(served, model, run / "draft", drafts, logs) as (plain, drafted):
        suite = ["--suite", "humaneval", "--suite-prompts", 16, "--suite-tokens", answer_tokens]
        step("evaluate", *evaluate, "--baseline-url", plain, "--base-url", drafted, *suite)
        step("speed", *tune, "--baseline-url", plain, "--base-url", f"{drafts}={drafted}")
    if sweep:
        step("sweep", *tune, "--drafts", "1,2,3")

    with s3_endpoint(logs / "s3.log"):
        published = f"s3://{BUCKET}/{NAME}"
        step("publish", "tools/publish_draft.py", run, published)
        step("publish", "tools/publish_draft.py", run, run / "published")
        step("fetch", "tools/fetch_draft.py", place_of(published, method_named(method)), run / "fetched")
    figures = {**figures_of(store), "this took": f"{(time.monotonic() - started) / 60:.1f} minutes"}
    write_marker(store, SWEPT if sweep else MARKER, Marker.of("demo", settings, {}, facts=figures))
    show(figures, "the demo in figures")


def step(name: str, *command: object) -> None:
    """Run one command of the README, shown first; its failure ends the demo with its own exit code."""
    words = [str(word) for word in command]
    console.rule(f"[bold]{name}", align="left")
    script = words[0].endswith(".py")
    console.print(
        "$ " + shlex.join(["python3", *words] if script else words), style="cyan", highlight=False, soft_wrap=True
    )
    begun = time.monotonic()
    code = subprocess.run([sys.executable, *words] if script else words, check=False).returncode
    if code:
        cli.fail(f"the demo's step {name} ended with {code}; `make demo` again goes on from here", code)
    console.print(f"{name}: {time.monotonic() - begun:.0f} s", style="dim")


def served_unless(done: bool, model: Path, log: Path):
    """The CPU server where there is work for it; else a context that names the default URL, which nobody will ask."""
    if done:
        return nullcontext(IDLE)
    console.rule("[bold]serve the target", align="left")
    console.print(f"starting SGLang on CPU; its log is {log}", style="dim")
    # A copy of the model on each core beats one copy on all: threads that wait for each other crawl on a busy machine.
    cores = sorted(os.sched_getaffinity(0))[:COPIES]
    environment = {"MAX_RUNNING_REQUESTS": "64", "SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, cores))}
    # A prompt that is read alone costs a pass over all weights: new ones wait for a fifth of the running to end.
    flags = ("--dp-size", str(len(cores)), "--enable-prefill-delayer", "--prefill-delayer-queue-min-ratio", "0.2")
    return serving.sglang_on_cpu(model, port=serving.free_port(30000), log=log, flags=flags, environment=environment)


@contextmanager
def both_served_unless(done: bool, model: Path, draft: Path, drafts: int, logs: Path) -> Iterator[tuple[str, str]]:
    """A server without the draft and one with it, alike, to be asked in turn: a copy each, on one core."""
    if done:
        yield IDLE, IDLE
        return
    console.rule("[bold]serve the target, and the target with the draft", align="left")
    console.print(f"starting two of SGLang on CPU; their logs are in {logs}", style="dim")
    environment = {"MAX_RUNNING_REQUESTS": "8", "DRAFT_STEPS": str(drafts)}
    with (
        serving.starting(model, log=logs / "server-plain.log", environment=environment) as plain,
        serving.starting(model, draft, log=logs / "server-draft.log", environment=environment) as drafted,
    ):
        yield plain.ready(), drafted.ready()


@contextmanager
def s3_endpoint(log: Path) -> Iterator[None]:
    """moto's S3 server on loopback, for as long as the block; the environment's S3 settings point to it."""
    port = serving.free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output
        )
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="demo",
        AWS_SECRET_ACCESS_KEY="demo",
        AWS_REGION="us-east-1",
    )
    try:
        with Wait("moto's S3 server"):
            _await_bucket(server, log)
        yield
    finally:
        server.terminate()
        server.wait()


def _await_bucket(server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise PassingFault(f"moto's S3 server ended with {server.returncode}: see {log}")
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            return
        except EndpointConnectionError:
            time.sleep(0.2)
    raise PassingFault(f"moto's S3 server does not listen: see {log}")


def figures_of(store: Store) -> dict[str, str]:
    """What is worth a look, read from the markers."""
    answers = _marker(store, "answers/shard-00000-of-00001/shard.json").counts
    samples = _marker(store, "samples/samples.json").counts
    report = _marker(store, "report/report.json").facts
    offline, served = report["offline"], report["speculative"]
    metrics = [json.loads(line) for line in store.read("checkpoints/metrics.jsonl").splitlines()]
    steps = [row for row in metrics if "loss" in row]
    return {
        "rows answered, and tokens": f"{answers['answers']:,}, {answers['completion_tokens']:,}",
        "rows trained on, and steps": f"{samples['train']:,}, {steps[-1]['step']:,}",
        "training time": f"{sum(row['seconds'] for row in steps) / 60:.1f} minutes",
        "accept length, untrained draft": f"{offline['untrained_accept_length']:.2f}",
        "accept length, offline": f"{offline['accept_length']:.2f}",
        "accept length, SGLang": f"{served['accept_length']:.2f}",
        **speeds(_marker(store, "report/sweep.json").facts["measured"]),
        "same tokens": "yes" if served["tokens_equal_baseline"] else f"all but {len(served['differ'])} answers",
        "worth serving": verdict(gather(store)),
        "report": f"{store.url}/report/report.html",
    }


def speeds(measured: list[Json]) -> dict[str, str]:
    """Tokens/s at each load without the draft and with it, and how many times as many that is."""
    told = {}
    for one in measured:
        faster, least, most = one["speed_up"]
        before, after = (one[name]["tokens_per_s"][0] for name in ("plain", "drafted"))
        told[f"tokens/s, {at_once(one['concurrency'])}, {a_round(one['drafts'])}"] = (
            f"{before:.1f} without, {after:.1f} with it: {faster:.2f} times ({least:.2f} to {most:.2f})"
        )
    return told


def show(figures: dict[str, str], title: str) -> None:
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name, value)
    console.print(table)


def _marker(store: Store, key: str) -> Marker:
    found = read_marker(store, key)
    if found is None:
        raise SpecError(f"{store.url}/{key} is missing after a run that ended well")
    return found


if __name__ == "__main__":
    cli.run(main)
