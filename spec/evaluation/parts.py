"""The parts of an evaluation, kept in the run as they are measured: offline.json, baseline.json, speculative.json.

`published_…` are the same of the draft that is to be replaced.

Each says what it was measured on (`of`), so that parts of different drafts, prompts or settings are never put together.
"""

import json
from collections.abc import Iterator
from typing import Any

from spec.errors import BadInput
from spec.storage import Store

Part = dict[str, Any]

NAMES = ("offline", "baseline", "speculative")
PUBLISHED = ("published_offline", "published_speculative")


class Parts:
    """The parts in `store` that are of what is evaluated now; others are as good as absent."""

    def __init__(self, store: Store, of: dict[str, Any]):
        """`of[name]` is what a part must have been measured on; a part without is not looked for."""
        self._store, self._of = store, of
        self._there = {name: part for name in (*NAMES, *PUBLISHED) if name in of and (part := self._read(name))}

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def __getitem__(self, name: str) -> Part:
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def keep(self, name: str, part: Part) -> None:
        self._there[name] = {**part, "of": self._of[name]}
        self._store.write(f"{name}.json", (json.dumps(self._there[name]) + "\n").encode())

    def _read(self, name: str) -> Part | None:
        try:
            part = json.loads(self._store.read(f"{name}.json"))
            return part if part["of"] == self._of[name] else None
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise BadInput(f"{self._store.url}/{name}.json: truncated or not a part of a report; delete it") from error
