"""The model card: `draft/README.md`, for people and for a hub. Written at export and again once the draft is measured.

It stands outside of what `draft.json` vouches for (it changes when the draft does not), and inside the manifest of a
published version.
"""

import jinja2

from spec.errors import BadInput
from spec.methods import method_of
from spec.report import suites, sweep, tables
from spec.report.command import NUM_STEPS, serving_command, target_of
from spec.report.evidence import Evidence, gather
from spec.report.verdict import sentence, verdict
from spec.storage import Store, is_hub_name

FILE = "README.md"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("spec.report", "."),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["cell"] = lambda value: _cell(tables.plain(value))


def write(run: Store) -> None:
    """Write the card of the run's draft. Raises `BadInput` if there is no draft."""
    run.write(f"draft/{FILE}", render(gather(run)).encode())


def render(evidence: Evidence) -> str:
    """The card's text; what was not measured is said, not left open."""
    draft = evidence.draft
    if draft is None:
        raise BadInput("no draft to write a card for; run tools/extract_draft_model.py")
    target, dataset = target_of(draft), evidence.run.get("dataset", {})
    names = [its.get("name") for its in dataset.get("mix", [dataset])]
    return _TEMPLATES.get_template("card.md.j2").render(
        method=method_of(draft.facts["config"]),
        target=target,
        revision=evidence.run.get("target", {}).get("revision"),
        base_model=target if is_hub_name(target) else None,
        dataset=dataset,
        hub_datasets=[name for name in names if name and is_hub_name(name)],
        command=serving_command(draft, "DRAFT", num_steps=evidence.num_steps or NUM_STEPS),
        gate=evidence.measured("gate"),
        temperature=evidence.measured("offline").get("temperature"),
        suites=suites.markdown(evidence),
        sweep=sweep.markdown(evidence),
        verdict=sentence(verdict(evidence)),
        measured=dict(tables.measured(evidence)),
        data=dict(tables.data(evidence)),
        training=dict(tables.training(evidence)),
        costs=dict(tables.costs(evidence)),
        facts=dict(tables.draft(evidence)),
        versions=evidence.run.get("versions") or {},
    )


def _cell(text: str) -> str:
    """Text that cannot break out of a table's cell: one line, no bar, nothing that is markup."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
