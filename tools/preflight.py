"""Check a pipeline's parameters before anything of it starts, in seconds: one line that names the wrong one, exit 2.

Writes to --output where the target is staged (file target), and which of the parts that need GPUs are `missing` or
`done` (files answers, training, report), so that the same run submitted again starts only what it still needs; and
which draft is published that the new one must not be worse than (files published, published-server).
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from evaluate_draft import main as evaluate_draft  # the tools beside this one
from filter_data import main as filter_data
from tune_server import main as tune_server

from spec import cli
from spec.cluster import preflight, preflight_training
from spec.cluster.api import Cluster
from spec.cluster.notice import check_url
from spec.cluster.queues import check_queue
from spec.cluster.rollout import check_served, named
from spec.costs.budget import Budget, parse_prices, write_budget
from spec.costs.estimate import GpuHours, check_cap, of_serving, of_training, tokens_of, tokens_trained, training_of
from spec.costs.records import end_forgotten
from spec.evaluation.gate import Bar
from spec.methods import METHODS
from spec.publishing.drafts import place_of
from spec.publishing.standing import NONE

ROOT = Path(__file__).parents[1]


def main(
    run: Annotated[str, typer.Option(help="Where the run lives")],
    destination: Annotated[str, typer.Option(help="Where the draft is published")],
    workflow: Annotated[str, typer.Option(help="The workflow's name")],
    model: Annotated[str, typer.Option(help="The target: a hub name or an s3:// URL")],
    revision: Annotated[str, typer.Option(help="The target's revision")],
    models: Annotated[Path, typer.Option(readable=False, help="Where the volume with staged targets is mounted")],
    config: Annotated[str, typer.Option(help="The recipe's config, as spec/configs/…/….yaml")],
    train_options: Annotated[str, typer.Option(help="Settings of the recipe to change, as key=value words")],
    filter_options: Annotated[str, typer.Option(help="More words for tools/filter_data.py")],
    evaluate_options: Annotated[str, typer.Option(help="More words for tools/evaluate_draft.py")],
    dataset_name: Annotated[str, typer.Option(help="Where the prompts come from; with weights, one word each")],
    dataset_split: Annotated[str, typer.Option(help="The dataset's split; with weights, one word for all or each")],
    weights: Annotated[str, typer.Option(help="The weights of a mix, as words; none for one dataset")],
    turns: Annotated[str, typer.Option(help="Answers to ask for of each row with tools: all, last, or the last N")],
    parallel: Annotated[int, typer.Option(help="Requests that a filter pod keeps in flight")],
    temperature: Annotated[float, typer.Option(help="Temperature of the answers")],
    max_tokens: Annotated[int, typer.Option(help="Longest answer")],
    min_accept_length: Annotated[float, typer.Option(help="The bar")],
    min_speed_up: Annotated[float, typer.Option(help="The bar of speed; 0 is none")],
    at_concurrency: Annotated[int, typer.Option(help="The load of that bar; 0 is none")],
    max_regression: Annotated[float, typer.Option(help="The bar beside the published draft; 1 is none")],
    max_running_requests: Annotated[int, typer.Option(help="Requests that the servers of the evaluation run at once")],
    shards: Annotated[int, typer.Option(help="Number of shards")],
    nodes: Annotated[int, typer.Option(help="Training nodes")],
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a training node")],
    server_gpus: Annotated[int, typer.Option(help="GPUs of a server")],
    gpu_hour_prices: Annotated[str, typer.Option(help="Prices of a GPU-hour by kind of GPU, as JSON")],
    currency: Annotated[str, typer.Option(help="Of these prices")],
    max_gpu_hours: Annotated[float, typer.Option(help="The cap of the run's GPU-hours; 0 is none")],
    drafts: Annotated[int, typer.Option(help="Drafts a round that the draft is proven and served with")],
    sweep_drafts: Annotated[str, typer.Option(help="Drafts a round of the sweep; none for no sweep")],
    sweep_loads: Annotated[str, typer.Option(help="Requests at once of the sweep")],
    sweep_options: Annotated[str, typer.Option(help="More words for tools/tune_server.py")],
    serves: Annotated[str, typer.Option(help="What serves the draft, as NAMESPACE/DEPLOYMENT; nothing if empty")],
    queue: Annotated[str, typer.Option(help="Kueue's LocalQueue; none if empty")],
    secret: Annotated[str, typer.Option(help="The Secret that S3 credentials come from")],
    output: Annotated[Path, typer.Option(help="Directory for what was found")],
    namespace: Annotated[str | None, typer.Option(help="Default: this pod's, or the kubeconfig's")] = None,
) -> None:
    """Refuse a run that cannot succeed."""
    preflight.check_workflow_name(workflow)
    preflight.check_number("shards", shards, least=1, most=512)  # one pod each
    preflight.check_number("nodes", nodes, least=1, most=128)
    preflight.check_number("gpus-per-node", gpus_per_node, least=0, most=16)
    preflight.check_number("server-gpus", server_gpus, least=0, most=16)
    preflight.check_number("parallel", parallel, least=1, most=4096)
    preflight.check_number("temperature", temperature, least=0, most=2)
    preflight.check_number("max-tokens", max_tokens, least=1, most=131072)
    preflight.check_number("min-accept-length", min_accept_length, least=1, most=100)
    preflight.check_number("min-speed-up", min_speed_up, least=0, most=100)
    preflight.check_number("max-running-requests", max_running_requests, least=1, most=4096)
    preflight.check_number("at-concurrency", at_concurrency, least=0, most=max_running_requests)
    preflight.check_number("max-regression", max_regression, least=0, most=1)
    preflight.check_number("max-gpu-hours", max_gpu_hours, least=0, most=1e7)
    with preflight.parameter("gpu-hour-prices"):
        prices = parse_prices(gpu_hour_prices)
    filtering = preflight.check_filter(filter_data, filter_options, turns=turns, temperature=temperature)
    Bar(min_accept_length, min_speed_up or None, at_concurrency or None)
    if serves:
        with preflight.parameter("serves"):
            place, server = named(serves)
            print(check_served(Cluster(place), server), flush=True)
    preflight.check_shared("run", run, ("s3://",))
    preflight.check_shared("destination", destination, ("s3://", "hf://"))
    preflight_training.check_config("config", config, ROOT)
    training = preflight_training.settings_of("train-options", ROOT / config, train_options)
    method = METHODS[training.method]
    servers = 3 if max_regression < 1 and min_speed_up else 2  # that the draft is proven on
    needed = {"nvidia.com/gpu": max(nodes * gpus_per_node, servers * server_gpus)}
    names = "nodes, gpus-per-node and server-gpus"
    cluster = Cluster(namespace)
    preflight.check_quota(cluster.quotas(), needed, names=names)
    if told := check_queue(cluster, queue):
        print(told, flush=True)
    preflight.check_credentials(secret)
    if url := os.environ.get("WEBHOOK_URL"):
        check_url("secret webhook: WEBHOOK_URL", url)
    store = preflight.check_writable("run", run)
    if destination.startswith("hf://"):
        preflight.check_hub_token("destination", destination)
    else:
        preflight.check_writable("destination", destination)
    preflight.check_volume(models)
    target = preflight.staged_at(models, model, revision)
    preflight.check_model(model, revision, target)
    its = preflight.config_of_target(model, revision, target)
    asked = preflight_training.check_draft("config and train-options", training, its, nodes * gpus_per_node)
    remaining = preflight.remaining(store, shards)
    if max_regression < 1:
        with preflight.parameter("destination"):
            server = f"http://{workflow}-published:30000" if min_speed_up else NONE  # only where speed counts
            remaining |= preflight.to_compare(store, place_of(destination, method), server)
    preflight.check_nothing_to_redo("filter-options", filter_options, "answers", remaining)
    preflight.check_nothing_to_redo("train-options", train_options, "training", remaining)
    preflight.check_nothing_to_redo("evaluate-options", evaluate_options, "report", remaining)
    preflight_training.check_same_training("train-options", train_options, training, store)
    draft = preflight_training.config_of_draft(store, asked)
    preflight_training.check_learnt("drafts", str(drafts), method, draft)
    if sweep_drafts:
        preflight_training.check_learnt("sweep-drafts", sweep_drafts, method, draft)
        preflight_training.check_loads("sweep-loads", sweep_loads, most=max_running_requests)
        preflight.check_sweep(tune_server, sweep_options, sweep_loads)
    if remaining["training"] == "missing" and (
        told := preflight_training.check_start("train-options", training, store)
    ):
        print(told, flush=True)
    if remaining["answers"] == "missing":
        preflight.check_datasets(dataset_name, weights, dataset_split, pattern=filtering["glob"])
        preflight.check_suites("filter-options", filtering["leave_out"] or ())
    if remaining["report"] == "missing":
        preflight.check_evaluate(evaluate_draft, evaluate_options)
    work = training_of(ROOT / config, training, nodes * gpus_per_node)
    budget = Budget(per_gpu_hour=prices, currency=currency, max_gpu_hours=max_gpu_hours, training=work)
    left = GpuHours()
    rows: tuple[float, float | None] = (0, None)
    if remaining["answers"] == "missing":
        rows = preflight.rows_of(dataset_name, weights, dataset_split, filtering)
        left += of_serving(ROOT / config, rows, gpus=server_gpus, max_tokens=max_tokens)
    if remaining["training"] == "missing":
        left += of_training(work, tokens_of(store, rows), tokens_trained(store))
    end_forgotten(store)  # nothing else of this run goes on: a workflow has its lock
    print(check_cap(store, budget, left), flush=True)
    write_budget(store, budget)
    output.mkdir(parents=True, exist_ok=True)
    found = {"target": str(target), "published": NONE, "published-server": NONE} | remaining
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
        (output / name).write_text(value)


if __name__ == "__main__":
    cli.run(main)
