"""The model card: the exact command, the data, the settings and what was measured, for people and for a hub."""

import json
import re
from pathlib import Path

import pytest
import yaml

from spec.errors import BadInput
from spec.methods.files import MARKER
from spec.report import card
from spec.report import lineage as lineage_of
from spec.report.command import serving_command
from spec.report.evidence import gather
from spec.storage import open_store
from spec.storage.markers import read_marker
from tests.runs import add_report, make_run

COMMAND = """```bash
python -m sglang.launch_server \\
  --model-path ORG/Target-8B-Instruct \\
  --speculative-algorithm EAGLE3 \\
  --speculative-draft-model-path DRAFT \\
  --speculative-num-steps 3 \\
  --speculative-eagle-topk 1 \\
  --speculative-num-draft-tokens 4
```"""


@pytest.fixture
def run(tmp_path: Path):
    return make_run(tmp_path / "run")


def written(run) -> str:
    card.write(run)
    return run.read("draft/README.md").decode()


def rows(text: str) -> dict[str, str]:
    """The card's tables: name, value."""
    return dict(re.findall(r"^\| ([^|]+) \| `(.*)` \|$", text, re.MULTILINE))


def test_it_has_the_exact_command_data_settings_and_figures(run):
    text = written(run)
    assert COMMAND in text
    wanted = {
        "accept length (SGLang)": "1.75 tokens a forward",
        "drafts accepted by position (SGLang)": "49.1%, 19.0%, 6.5%",
        "accept length of an untrained draft": "1.00",
        "tokens/s without and with the draft": "70.1 and 84.2",
        "same tokens as the server without the draft": "yes",
        "held-out prompts": "32",
        "prompts: name": "ORG/prompts",
        "prompts: revision": "fe12",
        "answers: temperature": "0",
        "filter: rows": "40",
        "filter: too_long": "2",
        "samples: train": "33",
        "optimizer.lr": "0.001",
        "optimizer.betas": "0.9, 0.95",
        "steps": "7",
        "max_length": "2,048",
        "tokens_seen": "320,000",
        "draft vocabulary": "16 of 32 tokens",
        "features": "outputs of the target's layers 1, 3, 4",
        "server": "0.5.23",
    }
    found = rows(text)
    assert {name: found.get(name) for name in wanted} == wanted
    assert "The gate was passed: accept length 1.745 on the server; the bar is 1.6." in text
    assert "None" not in text


def test_the_hub_reads_its_front_matter(run):
    _, front, _ = written(run).split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["base_model"] == "ORG/Target-8B-Instruct"
    assert about["datasets"] == ["ORG/prompts"]
    assert {"eagle3", "sglang"} <= set(about["tags"])


def test_a_mix_and_what_was_left_out_of_it_stand_on_it(run):
    parts = [{"name": "ORG/chats", "revision": "c0ffee"}, {"name": "*.log", "sha256": "ab12"}]
    mix = [{**its, "weight": weight, "share": weight / 4} for its, weight in zip(parts, (3, 1), strict=True)]
    suites = [{"name": "suite.jsonl", "sha256": "cd34"}]
    dataset = {"name": "ORG/chats + *.log", "limit": None, "mix": mix, "leave_out": suites, "scrub": "pii:clean"}
    lineage = json.loads(run.read("run.json")) | {"dataset": dataset}
    run.write("run.json", json.dumps(lineage).encode())
    text = written(run)
    assert yaml.safe_load(text.split("---\n", 2)[1])["datasets"] == ["ORG/chats"]
    wanted = {"prompts: mix.1.name": "ORG/chats", "prompts: mix.1.share": "0.75", "prompts: mix.2.name": "*.log"}
    wanted |= {"prompts: leave_out.1.name": "suite.jsonl", "prompts: scrub": "pii:clean"}
    found = rows(text)
    assert {name: found.get(name) for name in wanted} == wanted
    told = dict(lineage_of.rows(gather(run)))["prompts"]
    assert told.startswith("75.0% ORG/chats, revision c0ffee, weight 3; 25.0% *.log, sha256 ab12, weight 1")
    assert told.endswith("scrub pii:clean, less suite.jsonl, sha256 cd34")


@pytest.mark.parametrize("name", ["/models/target", "./target", "target", "a/b/c", "x: [y", "ORG/na\nme"])
def test_only_names_of_the_hub_are_given_to_it(run, name: str):
    change_run(run, name)
    _, front, _ = written(run).split("---\n", 2)
    assert {"base_model", "license_link", "datasets"}.isdisjoint(yaml.safe_load(front))


def change_run(run, name: str) -> None:
    lineage = json.loads(run.read("run.json"))
    lineage["target"]["model"] = lineage["dataset"]["name"] = name
    run.write("run.json", json.dumps(lineage).encode())
    draft = json.loads(run.read("draft/draft.json"))
    draft["facts"]["run"] = lineage
    run.write("draft/draft.json", json.dumps(draft).encode())


def test_names_cannot_break_out_of_their_place(run):
    change_run(run, "</td><script>alert(1)</script> | `x`\n## Free money")
    text = written(run)
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert "<script>" not in outside and "## Free money" not in outside


def test_an_unmeasured_draft_has_a_card_that_says_so(run):
    run.delete("report/report.json")
    text = written(run)
    assert "Not measured yet" in text and COMMAND in text and "1.75" not in text


def test_a_gate_without_a_bar_is_told_as_it_was(run):
    report = json.loads(run.read("report/report.json"))
    report["facts"]["gate"] |= {"min_accept_length": None, "why": "accept length 1.745 on the server; no bar was set"}
    run.write("report/report.json", json.dumps(report).encode())
    text = written(run)
    assert "no bar was set" in text and "None" not in text


def test_a_draft_that_missed_the_bar_says_so(run):
    add_report(run, passed=False)
    assert "The gate was missed: accept length 1.745 on the server is below 1.9." in written(run)


def test_a_card_of_no_draft_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"run tools/extract_draft_model.py"):
        card.write(open_store(tmp_path))


def test_the_context_is_in_the_command_only_where_the_draft_is_the_shorter(run):
    marker = read_marker(run.at("draft"), MARKER)
    assert "--context-length" not in serving_command(marker, "DRAFT")
    marker.facts["context_length"] = 1024
    assert serving_command(marker, "DRAFT").endswith("--context-length 1024")


def test_a_command_asks_a_block_for_no_more_drafts_than_it_has(run):
    marker = read_marker(run.at("draft"), MARKER)
    marker.facts["config"] = {"architectures": ["DSparkDraftModel"], "block_size": 2}
    assert "--speculative-dspark-block-size 2" in serving_command(marker, "DRAFT")
    assert "--speculative-dspark-block-size 1" in serving_command(marker, "DRAFT", num_steps=1)


def test_the_draft_of_the_card_is_the_one_that_is_there(run):
    assert rows(written(run))["parameters"] == f"{gather(run).draft.counts['parameters']:,}"
