"""Which files of a local folder are a split's: one that `save_to_disk` wrote, or any folder of data files."""

import json
import re
from pathlib import Path

from spec.conversations.tables import KINDS, LOG, kind_of
from spec.errors import BadInput

_KEYWORDS = {"train": ("train", "training"), "test": ("test", "testing", "eval", "evaluation"),
             "validation": ("validation", "valid", "val", "dev")}  # fmt: skip
_NUMBERED = re.compile(r"(?:^|/)(\w+)-\d{5}-of-\d{5}[^/]*$")  # SPLIT-00000-of-00004.parquet, as the hub names them


def files_of(folder: Path, split: str) -> list[Path]:
    """The data files of `split`, in the order of their rows. Raises `BadInput` where there are none."""
    if (folder / "dataset_dict.json").exists():
        splits = _read(folder / "dataset_dict.json", "splits")
        if split not in splits:
            raise BadInput(f"{folder}: no split {split!r}; it has {', '.join(splits)}; name one with --dataset-split")
        folder = folder / split
    elif (folder / "state.json").exists() and split != "train":
        raise BadInput(f"{folder}: holds one dataset, without splits; leave --dataset-split out")
    if (folder / "state.json").exists():
        return [folder / entry["filename"] for entry in _read(folder / "state.json", "_data_files")]
    files = [path for path in sorted(folder.rglob("*"))
             if path.is_file() and kind_of(path) and not path.name.startswith(".")]  # fmt: skip
    data = [path for path in files if kind_of(path) != LOG]  # logs beside data are of whatever made the data
    if files and not data:
        if split != "train":
            raise BadInput(f"{folder}: logs have no split {split!r}; leave --dataset-split out")
        return files
    found = {path: _split_of(path.relative_to(folder).as_posix()) for path in data}
    if not found:
        raise BadInput(f"{folder}: no data files; wanted {', '.join(KINDS)} or a save_to_disk folder")
    splits = sorted({its for its in found.values() if its})
    if not splits and split == "train":
        return list(found)
    if split not in splits:
        raise BadInput(f"{folder}: no split {split!r}; it has {', '.join(splits) or 'none but train'}")
    return [path for path, its in found.items() if its == split]


def _split_of(name: str) -> str | None:
    """The split that a file's path names, if any."""
    if numbered := _NUMBERED.search(name):
        return numbered[1]
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((split for split, keywords in _KEYWORDS.items() if any(word in keywords for word in words)), None)


def _read(path: Path, field: str) -> list:
    try:
        return json.loads(path.read_text())[field]
    except (ValueError, LookupError, TypeError) as error:
        raise BadInput(f"{path}: damaged ({error}); save the dataset again") from error
