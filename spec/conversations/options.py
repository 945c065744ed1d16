"""How the target is to answer, as the words of a command line or of a workflow's parameters say it."""

import json
from typing import Any

from spec.conversations.server import Sampling
from spec.errors import BadInput


def sampling_of(*, turns: str, chat_template_kwargs: list[str] | None, **others: Any) -> Sampling:
    """`Sampling` with `turns` as "all", "last" or a number, and template settings as JSON. Raises `BadInput`."""
    return Sampling(turns=turns_of(turns), chat_template_kwargs=_variants(chat_template_kwargs or []), **others)


def turns_of(text: str) -> str | int:
    if text == "all":
        return text
    if text == "last":
        return 1
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"--turns {text}: all, last, or a number from 1")
    return int(text)


def _variants(texts: list[str]) -> dict[str, Any] | list[dict[str, Any]] | None:
    variants = [_template_kwargs(text) for text in texts]
    for place, variant in enumerate(variants):
        if variant in variants[:place]:
            raise BadInput(f"--chat-template-kwargs {json.dumps(variant)}: given twice; --samples asks more than once")
    return variants if len(variants) > 1 else variants[0] if variants else None


def _template_kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text, parse_constant=_no_json)
    except ValueError as error:
        raise BadInput(f"--chat-template-kwargs {text}: not JSON ({error})") from error
    if not isinstance(kwargs, dict):
        raise BadInput(f"--chat-template-kwargs {text}: a JSON object is wanted")
    return kwargs


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is none")
