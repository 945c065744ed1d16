"""What a sweep is asked for, read from words. Needs no torch: preflight checks it too."""

from dataclasses import dataclass

from spec.errors import BadInput
from spec.methods.method import ADAPTIVE, Drafts, Json, Method


@dataclass(frozen=True)
class Settings:
    loads: tuple[int, ...]  # requests at once
    drafts: tuple[Drafts, ...]  # a round
    rounds: int = 3
    prompts: int = 32
    max_new_tokens: int = 128
    server_options: str = ""  # more flags of servers that are started for it


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,4,16`, ascending. `BadInput` begins with `option`."""
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1:
        raise BadInput(f"{option} {text}: whole numbers of at least 1, as 1,4,16")
    return found


def drafts_of(option: str, text: str) -> tuple[Drafts, ...]:
    """`1,3,adaptive`, the adaptive one last. `BadInput` begins with `option`."""
    words = text.split(",")
    fixed = [word for word in words if word != ADAPTIVE]
    adaptive = (ADAPTIVE,) if len(fixed) < len(words) else ()
    return (*(numbers(option, ",".join(fixed)) if fixed else ()), *adaptive)


def check_drafts(option: str, drafts: tuple[Drafts, ...], method: Method, config: Json) -> None:
    """A draft of that config can be served with so many drafts a round. `BadInput` begins with `option`."""
    for count in drafts:
        try:
            method.flags(count)  # refuses an adaptive number where there is none
        except BadInput as error:
            raise BadInput(f"{option} {error}") from error
    longest = max((count for count in drafts if count != ADAPTIVE), default=1)
    most = method.most_drafts(config)
    if most is not None and longest > most:
        raise BadInput(f"{option} {longest}: the draft is trained for blocks of {most} drafts a round")
