"""What can be known before anything starts: wrong parameters, no access to the run, a quota too small, work done.

Seconds of a small pod instead of hours of a GPU node. Every message names the workflow parameter that is wrong.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from spec.cli import parsed
from spec.cluster.api import Json
from spec.conversations.ids import Shard
from spec.conversations.patterns import is_pattern, stored_files
from spec.conversations.shards import MARKER, folder_of
from spec.errors import BadInput, PassingFault
from spec.evaluation.settings import OWN
from spec.publishing.standing import NONE, compared_with, to_compare_with
from spec.storage import Store, open_store
from spec.target.families import read_config
from spec.target.hub_source import on_hub
from spec.target.staging import STAGED
from spec.tuning.settings import numbers

TRAINED = "draft/draft.json"  # the exported draft's marker
LONGEST_NAME = 40  # of a workflow: `-draft-server` and a Deployment's suffixes must fit into a label's 63 characters
_UNITS: dict[str, float] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}


@contextmanager
def parameter(name: str) -> Iterator[None]:
    """Put the parameter's name in front of what is wrong with it."""
    try:
        yield
    except (BadInput, PassingFault) as error:
        raise type(error)(f"parameter {name}: {error}") from error


def check_number(name: str, value: float, *, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadInput(f"parameter {name}: {value}, where {least} to {most} is possible")


def check_workflow_name(name: str) -> None:
    """Jobs, hosts and labels are named after the workflow, so it must be a short DNS-1035 label."""
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise BadInput(
            f"the workflow's name {name}: at most {LONGEST_NAME} letters, digits and dashes, and a letter first; "
            "submit it with another --name or --generate-name"
        )


def check_credentials(secret: str) -> None:
    """S3 credentials from anywhere in the standard chain: the Secret's variables, a role of the pod, a profile."""
    import boto3  # 0.3 s, and only some runs are in S3
    from botocore.exceptions import BotoCoreError

    try:
        found = boto3.session.Session().get_credentials()
    except BotoCoreError as error:  # half a pair of keys
        raise BadInput(f"secret {secret}: {error}; it needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    if found is None:
        raise BadInput(
            f"secret {secret}: missing, or without AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the pod has no "
            f"other role; kubectl create secret generic {secret} --from-literal=AWS_ACCESS_KEY_ID=… "
            "--from-literal=AWS_SECRET_ACCESS_KEY=…"
        )


def check_writable(name: str, url: str) -> Store:
    """The store behind the parameter `name`, after one small object went there and back."""
    with parameter(name):
        store = open_store(url)
        probe = ".preflight"
        store.write(probe, b"")
        store.delete(probe)
    return store


def check_shared(name: str, url: str, schemes: tuple[str, ...]) -> None:
    """Every pod sees what is there. A directory would be each pod's own, and gone with it."""
    if not url.startswith(schemes):
        raise BadInput(f"parameter {name}: {url}: pods share no directory; give it as {' or '.join(schemes)}…")


def check_hub_token(name: str, url: str) -> None:
    """What is published on a hub at the end wants a token; without one, days of training would end before it."""
    if url.removeprefix("hf://").count("/") != 1:
        raise BadInput(f"parameter {name}: {url}: a place on the hub reads hf://ORG/NAME")
    if not os.environ.get("HF_TOKEN"):
        raise BadInput(f"parameter {name}: {url} needs a token: HF_TOKEN in the Secret hugging-face")


def check_volume(models: Path) -> None:
    """The volume of staged targets can be read by this pod's user."""
    if not os.access(models, os.R_OK | os.X_OK):
        raise BadInput(
            f"volume models: {models} cannot be read by user {os.getuid()}: its storage class ignores the pods' "
            "fsGroup, as host paths do; open its directory for them, or give the claim another class"
        )


def staged_at(models: Path, model: str, revision: str) -> Path:
    """Where a target is staged on the volume: a folder for each revision, so that runs of both may go on."""
    return models / model.removeprefix("s3://").strip("/") / revision


def check_model(model: str, revision: str, staged: Path) -> None:
    """The target is staged at `staged` already, or is where it is staged from: a hub's repository, an s3:// URL."""
    with parameter("model"):
        if (staged / STAGED).is_file():
            return
        if model.startswith("s3://"):
            if not open_store(model).exists("config.json"):
                raise BadInput(f"{model}: no config.json there")
        else:
            if "config.json" not in on_hub(model, revision).files:
                raise BadInput(f"{model}: no config.json in that repository: not a model that transformers loads")


def check_datasets(name: str, weights: str, split: str, *, pattern: bool) -> None:
    """The prompts are where the filter will read them: objects in S3, datasets of the hub.

    With `weights` they are several, as the words of `name`; by `pattern` an `s3://` URL may stand for several objects.
    """
    from spec.conversations.mixes import named  # brings `datasets`, which takes a second to import

    with parameter("weights and dataset-name"):
        datasets = named([name], weights, splits=[split])
    for dataset in datasets:
        with parameter("dataset-name"):
            _check_dataset(dataset.name, pattern)


def check_filter(command: Callable[..., Any], options: str, *, turns: str, temperature: float) -> dict[str, Any]:
    """`filter-options` are words of filter's `command`, and answers can be asked for as they and `turns` say.

    Gives what the command would be called with.
    """
    from spec.conversations.options import sampling_of, turns_of  # with what asks servers
    from spec.conversations.selection import check_fraction
    from spec.conversations.server import Sampling

    with parameter("turns"):
        turns_of(turns)
    with parameter("filter-options"):
        asked = parsed(
            command, ["--dataset-name=", f"--temperature={temperature}", f"--turns={turns}", *options.split()]
        )
        sampling_of(**{field.name: asked[field.name] for field in fields(Sampling)})
        check_fraction(asked["fraction"])
    return asked


def check_suites(name: str, suites: Sequence[str]) -> None:
    """Suites that the parameter `name` asks for are where its step will read them."""
    from spec.conversations.suites import place_of  # with what reads datasets

    with parameter(name):
        for place in filter(None, map(place_of, suites)):
            _check_dataset(place, pattern=False)


def check_evaluate(command: Callable[..., Any], options: str) -> None:
    """`evaluate-options` are words of evaluate's `command`, and the suites that they name are there."""
    from spec.conversations.suites import catalogue, is_named

    with parameter("evaluate-options"):
        asked = parsed(command, ["RUN", "--target=TARGET", *options.split()])
        wanted = [suite for suites in asked["suite"] or () for suite in suites.split(",") if suite not in ("", OWN)]
        for suite in wanted:
            if not (is_named(suite) or suite.startswith("s3://")):
                known = ", ".join(catalogue())
                raise BadInput(f"--suite {suite}: pods share no files; a suite is s3://BUCKET/FILE, or {known}")
    check_suites("evaluate-options", wanted)


def check_sweep(command: Callable[..., Any], options: str, loads: str) -> None:
    """`sweep-options` are words of the sweep's `command`, by which as many prompts are asked as the highest load."""
    with parameter("sweep-options"):
        asked = parsed(command, ["RUN", "--target=TARGET", *options.split()])
    if (prompts := asked["prompts"]) and prompts < max(numbers("parameter sweep-loads:", loads)):
        raise BadInput(f"parameter sweep-options: --prompts {prompts}: fewer than the requests at once of {loads}")


def _check_dataset(name: str, pattern: bool) -> None:
    if not name.startswith("s3://"):
        from huggingface_hub import HfApi

        from spec.storage.hub_errors import told

        with told(name):
            HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(name)
    elif pattern and is_pattern(name):
        stored_files(name)
    else:
        folder, _, file = name.rpartition("/")
        if not open_store(folder).exists(file):
            raise BadInput(f"{name}: no such object")


def rows_of(names: str, weights: str, split: str, filtering: dict[str, Any]) -> tuple[float, float | None]:
    """Rows that will be answered, from least to most (None: not known): by `--limit`, and what a hub says of datasets.

    What will be left out, rejected and held out is not: half of the rows are taken for the least.
    """
    from spec.conversations.mixes import named, rows_that_fit

    datasets = named([names], weights, splits=[split])
    there = rows_that_fit([_rows_on_hub(its.name, its.split) for its in datasets], [its.weight for its in datasets])
    rows = min((count for count in (there, filtering["limit"]) if count is not None), default=None)
    asked = (rows or 0) * filtering["samples"] * filtering["fraction"]
    return 0.5 * asked, None if rows is None else asked


def _rows_on_hub(name: str, split: str) -> int | None:
    """By the dataset's card, where that says it."""
    if name.startswith("s3://"):
        return None
    from huggingface_hub import HfApi

    from spec.storage.hub_errors import told

    with told(name):
        card = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(name).card_data
    configs = (card.to_dict() if card else {}).get("dataset_info") or []
    found = [its for one in ([configs] if isinstance(configs, dict) else configs) for its in one.get("splits") or []]
    counts = [its.get("num_examples") for its in found if its.get("name") == split]
    return counts[0] if len(counts) == 1 else None


def config_of_target(model: str, revision: str, staged: Path) -> PretrainedConfig:
    """Of the target's `config.json`, from where it is staged or will be staged from."""
    with parameter("model"), tempfile.TemporaryDirectory() as scratch:
        path = staged / "config.json"
        if not path.is_file():
            path = Path(scratch) / "config.json"
            if model.startswith("s3://"):
                open_store(model).download("config.json", path)
            else:
                on_hub(model, revision).download("config.json", path)
        try:
            return read_config(path)
        except BadInput as error:
            raise BadInput(str(error).replace(f"{path}", f"{model}/config.json")) from error


def check_nothing_to_redo(name: str, words: str, part: str, remaining: dict[str, str]) -> None:
    """Asked to replace what is done, a step would wait for a server that is not started for it."""
    for word in {"--overwrite", "overwrite=true"} & set(words.split()):
        if remaining[part] == "done":
            raise BadInput(f"parameter {name}: {word}: this run has its {part} already; give another run")


def check_quota(quotas: list[Json], needed: dict[str, float], *, names: str) -> None:
    """`needed` (resource to amount, as `{"nvidia.com/gpu": 16}`) fits into what every ResourceQuota has left.

    `names` are the parameters that it comes from. What other runs hold now counts as taken.
    """
    for quota in quotas:
        status = quota.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        for resource, amount in needed.items():
            key = next((key for key in (f"requests.{resource}", resource) if key in hard), None)
            if amount and key and amount > quantity(hard[key]) - quantity(used.get(key, "0")):
                raise BadInput(
                    f"parameters {names}: {amount:g} {resource} needed, and quota {quota['metadata']['name']} has "
                    f"{quantity(hard[key]) - quantity(used.get(key, '0')):g} of {hard[key]} left"
                )


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: `500m`, `16Gi`, `8`."""
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if not found or found[2] not in _UNITS:
        raise BadInput(f"{text}: not a quantity that Kubernetes knows")
    return float(found[1]) * _UNITS[found[2]]


def remaining(store: Store, shards: int) -> dict[str, str]:
    """For each part of the pipeline that needs GPUs, whether the run still lacks it: `missing` or `done`.

    Only spares starting servers and jobs. The steps themselves still run and compare settings with their markers.
    """
    answers = (f"{folder_of(Shard(index, shards))}/{MARKER}" for index in range(shards))
    done = {
        "answers": all(store.exists(key) for key in answers),
        "training": store.exists(TRAINED),
        "report": store.exists("report/report.json"),
    }
    return {part: "done" if is_done else "missing" for part, is_done in done.items()}


def to_compare(store: Store, place: str, server: str) -> dict[str, str]:
    """The `published` version at `place` that the draft must not be worse than, `none` where there is none; that the
    `report` is `missing` unless it compares the two; and the `published-server` to be asked, `server` or `none`.
    """
    version = to_compare_with(store, place)
    done = compared_with(store) == version
    return {
        "published": version,
        "published-server": NONE if done or version == NONE else server,
        **({} if done else {"report": "missing"}),
    }
