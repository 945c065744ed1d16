"""The servers' images take from a draft's config.json what its method says, and no more drafts than it knows."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from spec.methods import METHODS

SCRIPT = Path(__file__).parents[3] / "images/server/draft-flags"
CONFIGS = {
    "eagle3": {"architectures": ["LlamaForCausalLMEagle3"]},
    "dflash": {"architectures": ["DFlashDraftModel"], "block_size": 8, "dflash_config": {"block_size": 8}},
    "dspark": {"architectures": ["DSparkDraftModel"], "block_size": 7},
}


def sourced(folder: Path, config: dict, steps: str | None) -> subprocess.CompletedProcess[str]:
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"PATH": os.environ["PATH"], "DRAFT": str(folder)} | ({"DRAFT_STEPS": steps} if steps else {})
    script = f'set -euo pipefail; flags=(); source {SCRIPT}; printf "%s\\n" "${{flags[@]}}"'
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("method", "steps", "drafts"),
    [
        *((method, "3", 3) for method in CONFIGS),
        ("eagle3", None, 3),
        ("eagle3", "adaptive", "adaptive"),
        ("dflash", None, 7),
        ("dspark", None, 7),
    ],
)
def test_they_are_the_method_s(tmp_path: Path, method: str, steps: str | None, drafts: int | str):
    done = sourced(tmp_path, CONFIGS[method], steps)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\n")[:-1]
    at = words.index("--speculative-draft-model-path")
    assert words[at + 1] == str(tmp_path)
    flags = [word for pair in METHODS[method].flags(drafts).items() for word in pair if word]
    assert sorted(words[:at] + words[at + 2 :]) == sorted(flags)


@pytest.mark.parametrize("method", ["dflash", "dspark"])
def test_more_drafts_than_a_block_holds_are_refused(tmp_path: Path, method: str):
    done = sourced(tmp_path, CONFIGS[method], "8")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr == f"error: DRAFT_STEPS=8: the draft in {tmp_path} has learnt blocks of 7 drafts; give at most 7\n"
    )
