"""Rules on commands: a step calls a tool that exists, with options that it has."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tests.manifests.objects import ROOT, World
from tests.manifests.pods import containers, pods

Found = Iterator[tuple[str, str]]  # (where, message)


def command(world: World) -> Found:
    """Each `tools/NAME.py` is there and knows every option that a step passes to it."""
    for where, container in _calls(world):
        words = [str(word) for word in (container.get("command") or []) + (container.get("args") or [])]
        tool = _tool(words)
        if not (ROOT / tool).is_file():
            yield where, f"there is no {tool}"
            continue
        for word in words:
            name = word.partition("=")[0]
            if word.startswith("--") and name not in _options(tool):
                yield where, f"{tool} has no option {name}"


def _calls(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, spec, _ in pods(world):
        for container in containers(spec):
            if _tool(container.get("command") or []):
                yield f"{where}/{container['name']}", container


def _tool(words: list[str]) -> str:
    """The tools/NAME.py that a command runs, by itself or in a shell; "" for none."""
    parts = [part for word in words for part in str(word).split()]
    return next((part for part in parts if part.startswith("tools/") and part.endswith(".py")), "")


@cache
def _options(tool: str) -> set[str]:
    """The options of a tool, read from the signature of its `main` as Typer does."""
    module = ast.parse((ROOT / tool).read_text())
    main = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    named = {f"--{argument.arg.replace('_', '-')}" for argument in main.args.args}
    spelt = {
        node.value
        for node in ast.walk(main.args)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--")
    }
    return named | spelt


RULES: dict[str, Callable[[World], Any]] = {"command": command}
