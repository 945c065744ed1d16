import json

import pytest

from spec.conversations.ids import Shard
from spec.conversations.parts import open_parts
from spec.conversations.shards import MARKER, find_shards, folder_of, read_answers, read_counts
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, digest_of, write_marker


@pytest.fixture(params=["directory", "s3"])
def store(request, tmp_path):
    if request.param == "directory":
        return open_store(tmp_path / "run")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/run")


def finish(store, shard, rows, *, marker=True, temperature=0.0):
    """A shard's folder as the filter step leaves it: `rows` over two parts, then the marker."""
    folder = store.at(folder_of(shard))
    settings = {"sampling": {"temperature": temperature}, "shard": str(shard)}
    digest = digest_of("filter", settings, {})
    for some in (rows[::2], rows[1::2]):
        with open_parts(folder, digest) as parts:
            list(parts.lines())
            for row in some:
                parts.append(json.dumps(row).encode() + b"\n")
            files = parts.files()
    if marker:
        counts = {"rows": len(rows), "answers": sum("reject" not in row for row in rows), "empty": 1}
        write_marker(
            folder,
            MARKER,
            Marker(step="filter", digest=digest, settings=settings, inputs={}, files=files, counts=counts),
        )


def answer(row_id):
    return {"id": row_id, "messages": [{"role": "user", "content": row_id}], "turns": []}


FIRST = [answer("b-0"), answer("a-1"), {"id": "c-0", "reject": "empty", "detail": ""}, answer("a-0")]
SECOND = [answer("d-0"), {"id": "e-0", "reject": "empty", "detail": ""}]


def test_answers_come_in_the_order_of_ids_without_rejects(store):
    finish(store, Shard(0, 2), FIRST)
    finish(store, Shard(1, 2), SECOND)
    assert list(read_answers(store)) == [answer("a-0"), answer("a-1"), answer("b-0"), answer("d-0")]


def test_counts_are_those_of_all_shards(store):
    finish(store, Shard(0, 2), FIRST)
    finish(store, Shard(1, 2), SECOND)
    counted = {"rows": 6, "answers": 4, "empty": 2, "exact": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert read_counts(store) == counted


def test_a_row_that_twins_both_finished_comes_once(store):
    finish(store, Shard(0, 1), [*FIRST, answer("a-0")])
    assert [row["id"] for row in read_answers(store)] == ["a-0", "a-1", "b-0"]


def test_a_shard_without_its_marker_is_named(store):
    finish(store, Shard(0, 3), FIRST)
    finish(store, Shard(1, 3), SECOND, marker=False)
    with pytest.raises(BadInput, match="shards missing: 1/3, 2/3"):
        next(read_answers(store))


def test_a_run_without_answers_is_refused(store):
    with pytest.raises(BadInput, match="run tools/filter_data.py"):
        find_shards(store)


def test_shards_of_two_numbers_are_refused(store):
    finish(store, Shard(0, 1), FIRST)
    finish(store, Shard(0, 2), FIRST)
    with pytest.raises(BadInput, match="shards of 1 and 2"):
        find_shards(store)


def test_shards_of_different_settings_are_refused(store):
    finish(store, Shard(0, 2), FIRST)
    finish(store, Shard(1, 2), SECOND, temperature=1.0)
    with pytest.raises(BadInput, match="0/2 and 1/2 were made with different settings"):
        find_shards(store)


def test_damage_is_found(store):
    finish(store, Shard(0, 1), FIRST)
    part = next(entry.key for entry in store.list("answers") if "part-" in entry.key)
    store.write(part, store.read(part).replace(b"user", b"loser"))
    with pytest.raises(BadInput, match="damaged"):
        list(read_answers(store))


def test_a_line_that_is_no_row_is_named(store):
    finish(store, Shard(0, 1), [answer("a-0"), answer("b-0"), {"messages": []}])
    with pytest.raises(BadInput, match=r"^part-\S+: what begins at byte [1-9]\d* is no row of answers"):
        list(read_answers(store))
