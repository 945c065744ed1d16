"""What a pod takes from object storage to its own disk: prompts, and a draft that is not yet published."""

from pathlib import Path

import pytest

from spec.cluster.staging import stage_draft
from spec.conversations.sources import at_hand
from spec.errors import BadInput
from spec.methods.files import MARKER
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, digest_of, write_marker


def test_prompts_are_a_local_file_for_as_long_as_they_are_read(bucket: str):
    open_store(f"s3://{bucket}").write("prompts/few.jsonl", b'{"prompt": "x"}\n')
    with at_hand(f"s3://{bucket}/prompts/few.jsonl") as name:
        assert Path(name).name == "few.jsonl"  # which names the source in run.json
        assert Path(name).read_text() == '{"prompt": "x"}\n'
    assert not Path(name).exists()


def test_prompts_that_are_not_there_are_named(bucket: str):
    with pytest.raises(BadInput, match="none.jsonl: no such object"), at_hand(f"s3://{bucket}/none.jsonl"):
        pass


def test_a_draft_arrives_whole_or_not_at_all(bucket: str, tmp_path: Path):
    store = open_store(f"s3://{bucket}/run/draft")
    with pytest.raises(BadInput, match="no draft here"):
        stage_draft(store.url, tmp_path / "none")
    (tmp_path / "weights").write_bytes(b"right")
    files = describe_files(tmp_path, ["weights"])
    store.upload("weights", tmp_path / "weights")
    digest = digest_of("extract", {}, {})
    write_marker(store, MARKER, Marker(step="extract", digest=digest, settings={}, inputs={}, files=files))
    stage_draft(store.url, tmp_path / "draft")
    assert (tmp_path / "draft/weights").read_bytes() == b"right"
    store.write("weights", b"wrong")
    with pytest.raises(BadInput, match="damaged"):
        stage_draft(store.url, tmp_path / "other")
