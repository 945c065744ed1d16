"""A target's weights on disk: which safetensors file holds which tensor, and whether the files are what they claim.

Nothing here reads a weight into memory: headers are parsed, sizes compared, and, where `tools/stage_model.py` left its
marker, the bytes hashed.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from spec.errors import BadInput
from spec.storage import file_sha256
from spec.storage.markers import Marker
from spec.target.staging import INDEX, STAGED


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the file that holds it, after a look at each file's header.

    `BadInput` names the file that is missing, cut short, damaged in its header, or without a tensor that the index
    promises.
    """
    if (folder / INDEX).is_file():
        try:
            promised = {str(name): folder / str(file) for name, file in _json(folder / INDEX)["weight_map"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{folder / INDEX}: no weight_map in it; stage the model again") from error
        held = {path: _names_in(path) for path in sorted(set(promised.values()))}
        for name, path in promised.items():
            if name not in held[path]:
                raise BadInput(f"{path}: no tensor {name} in it, though {INDEX} says so; stage the model again")
        return promised
    single = folder / "model.safetensors"
    if not single.exists():
        others = any(folder.glob("*.bin")) or any(folder.glob("*.gguf"))
        hint = (
            "only safetensors are read: convert the model with save_pretrained" if others else "stage the model first"
        )
        raise BadInput(f"{folder}: no {INDEX} and no model.safetensors; {hint}")
    return dict.fromkeys(_names_in(single), single)


def check_staged_files(folder: Path, *, part: int, parts: int) -> None:
    """Hash every `parts`-th file, from the `part`-th, against the marker of staging; do nothing where there is none.

    The ranks of a node share the work, so that 470 GB on 8 ranks cost each of them about 40 s at 1.5 GB/s.
    """
    if not (folder / STAGED).is_file():
        return
    try:
        marker = Marker.model_validate(_json(folder / STAGED))
    except ValidationError as error:
        raise BadInput(f"{folder / STAGED}: not a marker; stage the model again") from error
    for name in sorted(marker.files)[part::parts]:
        path, expected = folder / name, marker.files[name]
        if not path.is_file():
            raise BadInput(f"{path}: missing, though {STAGED} lists it; stage the model again")
        if path.stat().st_size != expected.bytes or file_sha256(path) != expected.sha256:
            raise BadInput(f"{path}: damaged: not the bytes that {STAGED} vouches for; delete it and stage again")


def short(names: Iterable[str], at_most: int = 3) -> str:
    """A few of `names`, for a one-line message."""
    names = sorted(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _names_in(path: Path) -> set[str]:
    """The tensors of one file; the library checks the header against the file's size."""
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            return set(file.keys())
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; stage the model again") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: cut short or damaged ({error}); delete it and stage the model again") from error


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); stage the model again") from error
