"""What preparing needs of the target: its tokenizer and the size of its vocabulary. No weights are read."""

import hashlib
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from spec.errors import BadInput


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The fast tokenizer in a directory, or of a hub model. Raises `BadInput`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: no tokenizer to load ({error}); give --tokenizer the target's directory") from error
    if not tokenizer.is_fast:
        raise BadInput(f"{name}: no fast tokenizer, so no offsets; add the target's tokenizer.json")
    return tokenizer


def vocabulary_size(name: str, revision: str | None = None) -> int:
    """Rows of the target's embedding, which may be more than its tokenizer has tokens. Raises `BadInput`."""
    try:
        return AutoConfig.from_pretrained(name, revision=revision).get_text_config().vocab_size
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{name}: no config.json that gives vocab_size ({error}); use the target's directory") from error


def fingerprint(tokenizer: Any) -> str:
    """Hash of what decides a conversation's tokens: the tokenizer and its chat template (16 hex digits)."""
    parts = (tokenizer.backend_tokenizer.to_str(), tokenizer.get_chat_template() if tokenizer.chat_template else "")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
