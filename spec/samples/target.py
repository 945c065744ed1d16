"""What preparing needs of the target: its tokenizer and the size of its vocabulary. No weights are read."""

import hashlib
import json
from pathlib import Path
from typing import Any

from spec.errors import BadInput
from spec.progress import Wait

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def target_folder(target: str, revision: str | None = None) -> Path:
    """The target's directory, or that of a hub model in the cache, fetched there if need be. Raises `BadInput`."""
    if Path(target).is_dir():
        return Path(target)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(target, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise BadInput(
            f"{target}: no such directory, nor a hub model at hand; give --tokenizer DIR ({error})"
        ) from error


def fingerprint(folder: Path) -> str:
    """Hash of what decides a conversation's tokens: the tokenizer and its chat template (16 hex digits)."""
    present = [folder / name for name in _FILES[1:] if (folder / name).is_file()]
    return hashlib.sha256(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in present)).hexdigest()[
        :16
    ]


def vocabulary_size(folder: Path) -> int:
    """Rows of the target's embedding, which may be more than its tokenizer has tokens. Raises `BadInput`."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return int(config.get("text_config", config)["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"{folder}/config.json: no vocab_size there ({error}); use the target's own directory"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a directory, as the server loads it. Raises `BadInput`."""
    with Wait("importing transformers"):  # where torch is installed too, this takes 10 s
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no tokenizer to load ({error}); give --tokenizer the target's directory") from error
    if not tokenizer.is_fast:
        raise BadInput(f"{folder}: no fast tokenizer, so no offsets; add the target's tokenizer.json")
    return tokenizer
