"""Where a draft comes from: a row a step, from the target and the prompts to the report, for the report's last part."""

from spec.report.evidence import Evidence
from spec.report.tables import Rows, plain
from spec.storage.markers import Json, Marker


def rows(evidence: Evidence) -> Rows:
    """(step, what it worked on, and the identity by which the next step knows it); steps not taken are left out."""
    found = [
        ("target", _target(evidence.run.get("target", {}))),
        ("prompts", _prompts(evidence.run.get("dataset", {}))),
        ("answers", _answers(evidence.answers, evidence.run.get("sampling", {}))),
        ("samples", _samples(evidence.samples)),
        ("checkpoint", _checkpoint(evidence.draft)),
        ("draft", _draft(evidence.draft)),
        ("report", _report(evidence)),
    ]
    return [(step, told) for step, told in found if told]


def _target(target: Json) -> str:
    return _joined(target.get("model"), _named("revision", target.get("revision")))


def _prompts(dataset: Json) -> str:
    known = ("config", "split", "revision", "sha256", "column", "limit", "weight", "fraction", "scrub")
    named = [_named(name, dataset.get(name)) for name in known]
    shares = [f"{its['share']:.1%} {_prompts(its)}" for its in dataset.get("mix", [])]
    left_out = [f"less {_prompts(its)}" for its in dataset.get("leave_out", [])]
    name = None if shares else dataset.get("name")
    return _joined(name, "; ".join(shares), *named, *left_out)


def _answers(counts: dict[str, int], sampling: Json) -> str:
    if not counts:
        return ""
    told = f"{plain(counts.get('answers', 0))} of {plain(counts.get('rows', 0))} rows answered by the target"
    named = [_named(name, sampling.get(name)) for name in ("temperature", "seed")]
    return _joined(told, *named, _counted(sampling.get("max_tokens"), "tokens at most"))


def _samples(samples: Marker | None) -> str:
    if samples is None:
        return ""
    counts = samples.counts
    rows = f"{plain(counts.get('train', 0))} rows to train on, {plain(counts.get('held_out', 0))} held out"
    return _joined(rows, _named("identity", samples.identity))


def _checkpoint(draft: Marker | None) -> str:
    if draft is None:
        return ""
    reached = draft.facts.get("training", {})
    ranks, start = reached.get("ranks"), reached.get("start", {})
    return _joined(
        str(draft.inputs.get("checkpoint", "")),
        _counted(reached.get("tokens_seen"), "tokens seen"),
        _counted(ranks, "process" if ranks == 1 else "processes"),
        _named("begun from", start.get("initialise")),
        _named("SHA-256", start.get("sha256")),
        _named("identity", draft.inputs.get("trained")),
    )


def _draft(draft: Marker | None) -> str:
    if draft is None:
        return ""
    size = _counted(draft.counts.get("parameters"), "parameters")
    return _joined(size, _named("identity", draft.identity), draft.finished_at)


def _report(evidence: Evidence) -> str:
    if evidence.report is None:
        return ""
    served = evidence.measured("speculative")
    server = served.get("server", {})
    return _joined(
        _counted(served.get("prompts", evidence.measured("offline").get("prompts")), "held-out prompts"),
        " ".join(str(server[name]) for name in ("device", "dtype") if server.get(name)),
        _named("SGLang", server.get("version")),
        evidence.report.finished_at,
    )


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _named(name: str, value: object) -> str:
    return f"{name} {plain(value)}" if value is not None else ""


def _counted(value: int | None, name: str) -> str:
    return f"{plain(value)} {name}" if value is not None else ""
