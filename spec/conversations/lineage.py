"""`run.json`: which target answered which prompts, and how. Written once; the same for every shard of a run."""

import json
from importlib.metadata import version
from typing import Any

from spec.errors import BadInput
from spec.storage import Store
from spec.storage.markers import first_difference

RUN = "run.json"
_DECIDES = ("target", "dataset", "sampling")  # what a run is; `versions` only says what happened to make it


def read_run(store: Store) -> dict[str, Any]:
    """`{"target", "dataset", "sampling", "versions"}` of the run, or {} where nothing was filtered yet."""
    try:
        run = json.loads(store.read(RUN))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInput(f"{store.url}/{RUN}: not JSON ({error}); restore it or take another --output") from error
    if not isinstance(run, dict) or not set(_DECIDES) <= run.keys():
        wanted = ", ".join(_DECIDES)
        raise BadInput(f"{store.url}/{RUN}: not a run's ({wanted} are wanted); restore it or take another --output")
    return run


def tokenizer_of(run: dict[str, Any]) -> str | None:
    """What the tokenizer of the server that answered is known by (`token_ids.fingerprint`), if it said."""
    return run.get("versions", {}).get("tokenizer")


def record_run(
    store: Store,
    *,
    target: dict[str, Any],
    dataset: dict[str, Any],
    sampling: dict[str, Any],
    server: str | None,
    tokenizer: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `run.json`, or find it with the same target, dataset and sampling; gives these three.

    `tokenizer` is what the server's is known by. Raises `BadInput` naming the first difference where the run is another
    one or was begun with another tokenizer, unless `overwrite`.
    """
    asked = {"target": target, "dataset": dataset, "sampling": sampling}
    there = read_run(store)
    different = first_difference({name: there.get(name) for name in _DECIDES}, asked) if there else ""
    known = tokenizer_of(there)
    if not different and None not in (known, tokenizer) and known != tokenizer:
        different = f"the server's tokenizer: {known} there, {tokenizer} asked"
    if different and not overwrite:
        raise BadInput(
            f"{store.url} is another run: {different}; take another --output, or --overwrite to replace its answers"
        )
    if not there or different:
        versions = {"sgl-spec": version("sgl-spec"), "datasets": version("datasets"), "server": server}
        versions |= {"tokenizer": tokenizer} if tokenizer else {}
        store.write(RUN, (json.dumps({**asked, "versions": versions}, indent=1) + "\n").encode())
    return asked
