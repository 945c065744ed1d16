"""Is a draft worse than the one that it is to replace? Both on the same prompts, which neither was trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spec.evaluation.figures import Acceptance, total
from spec.methods import method_of
from spec.methods.files import WEIGHTS
from spec.methods.method import Method
from spec.samples.held_out import HELD_OUT_BELOW
from spec.storage.markers import Marker

Part = dict[str, Any]

SPEED_SPREAD = 0.05  # of a ratio of tokens/s: what two measurements of one server differ by


@dataclass(frozen=True)
class Standing:
    """The draft that is published where the new one is to go, as `spec.publishing.standing` has brought it."""

    version: str
    folder: str  # of the run
    marker: Marker

    @property
    def method(self) -> Method:
        return method_of(self.marker.facts["config"])

    def drafts(self, wanted: int) -> int:
        """Drafts a round, `wanted` of the new one: a block draft was trained for so many at most."""
        return min(wanted, self.method.most_drafts(self.marker.facts["config"]) or wanted)


def compare(
    standing: Standing | None, draft: Marker, parts: dict[str, Part], hashes: Sequence[int]
) -> dict[str, Any] | None:
    """`published` of a report: the accept lengths of both drafts, their ratio and its spread, and that of tokens/s.

    `parts` has the new draft's `offline` or `speculative` part and the same of the standing one (`published_offline`,
    `published_speculative`); `hashes` are `prompt_hash` of the prompts. None while a part is missing.
    """
    if standing is None:
        return {"version": None}
    if is_same(standing, draft):
        return {"version": standing.version, "same": True}
    where = next((name for name in ("speculative", "offline") if {name, f"published_{name}"} <= parts.keys()), None)
    if where is None:
        return None
    new, old = parts[where], parts[f"published_{where}"]
    below = [marker.facts.get(HELD_OUT_BELOW) for marker in (draft, standing.marker)]
    known = [limit for limit in below if limit is not None]
    kept = [at for at in range(len(new["outputs"])) if not hashes or all(hashes[at] < limit for limit in known)]
    found: dict[str, Any] = {
        "version": standing.version,
        "measured": "on the server" if where == "speculative" else "offline",
        "prompts": len(kept),
        "left_out": len(new["outputs"]) - len(kept),  # one of the drafts was trained on them
        "not_known": below.count(None),  # drafts that do not say what they were trained on
    }
    if kept:
        found |= {"accept_length": _length(new, kept), "its_accept_length": _length(old, kept)}
        found |= {"ratio": _ratio(new, old, kept), "spread": spread(new, old, kept)}
    if where == "speculative":
        found |= {"speed": new["tokens_per_s"] / old["tokens_per_s"], "at_concurrency": new["concurrency"]}
    return found


def is_same(standing: Standing, draft: Marker | None) -> bool:
    """Whether it is this very draft that is published."""
    return draft is not None and standing.marker.files[WEIGHTS].sha256 == draft.files[WEIGHTS].sha256


def judge(found: dict[str, Any], most: float) -> tuple[list[str], str]:
    """What speaks against the new draft, which may be worse by the fraction `most` and the spread; and all in words."""
    if found["version"] is None:
        return [], "nothing is published there yet to compare with"
    if found.get("same"):
        return [], f"version {found['version']}, which is published there, is this very draft"
    if not found["prompts"]:
        return [f"no prompt to compare it with version {found['version']}: one was trained on each; hold more out"], ""
    told = (
        f"accept length {found['accept_length']:.3f} {found['measured']} against {found['its_accept_length']:.3f} of "
        f"version {found['version']}, which is published there ({found['ratio'] - 1:+.1%} ± {found['spread']:.1%} on "
        f"{_prompts(found)})"
    )
    against = []
    if found["ratio"] + found["spread"] < 1 - most:
        against.append(f"{told}, is worse by more than {most:g}")
    if "speed" in found:
        speed = f"{found['speed']:.2f} times the tokens/s of version {found['version']}"
        told += f", {speed}"
        if found["speed"] + SPEED_SPREAD < 1 - most:
            against.append(f"{speed} is slower by more than {most:g}")
    return against, told


def spread(new: Part, old: Part, kept: Sequence[int]) -> float:
    """Two standard errors of the ratio of accept lengths, by the jackknife over prompts (Efron 1982); 0 of one prompt.

    Paired: a prompt that is hard for one draft is hard for the other.
    """
    count = len(kept)
    if count < 2:
        return 0.0
    without = [_ratio(new, old, [*kept[:at], *kept[at + 1 :]]) for at in range(count)]
    mean = sum(without) / count
    return 2 * math.sqrt((count - 1) / count * sum((one - mean) ** 2 for one in without))


def _ratio(new: Part, old: Part, kept: Sequence[int]) -> float:
    return _length(new, kept) / _length(old, kept)


def _length(part: Part, kept: Sequence[int]) -> float:
    tokens = sum(len(part["outputs"][at]) for at in kept)
    return Acceptance(tokens, total(part["histograms"][at] for at in kept)).accept_length


def _prompts(found: dict[str, Any]) -> str:
    told = f"{found['prompts']} prompts"
    if found["left_out"]:
        told += f", {found['left_out']} left out that one was trained on"
    if found["not_known"]:
        told += "; one may have been trained on some, it does not say"
    return told
