import json

import pytest

from spec.conversations.ids import RowIndex
from spec.conversations.results import Results
from spec.errors import BadInput

TURN = {"prompt_tokens": 5, "completion_tokens": 2, "finish_reason": "stop"}


def answer(number):
    return {"id": f"{number}", "messages": [], "turns": [TURN, TURN]}


def reject(number, bucket="too_long"):
    return {"id": f"{number}", "reject": bucket, "detail": "why"}


class ListParts:
    """In place of parts: a list of lines."""

    def __init__(self, *rows):
        self.written = [json.dumps(row).encode() + b"\n" for row in rows]

    def lines(self):
        yield from list(self.written)

    def append(self, line):
        self.written.append(line)

    @property
    def ids(self):
        return [json.loads(line)["id"] for line in self.written]


def test_counts_add_up():
    results = Results(ListParts(), doubt=9)
    for row in (answer(1), reject(2), answer(3), reject(4, "empty"), reject(5)):
        results.add(row)
    results.end()
    assert results.counts == {
        "rows": 5,
        "answers": 2,
        "too_long": 2,
        "empty": 1,
        "prompt_tokens": 20,
        "completion_tokens": 8,
    }
    assert results.rejects == {"empty": 1, "too_long": 2}


def test_what_was_finished_before_is_counted_once_and_known():
    index = RowIndex()
    results = Results(ListParts(answer(1), reject(2), answer(1)), doubt=9)
    results.restore(index)
    assert results.counts["rows"] == 2
    assert index.is_finished("1") and index.is_finished("2")


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b'{"no": "id"}\n'])
def test_a_part_that_holds_no_rows_is_refused(line):
    parts = ListParts()
    parts.append(line)
    with pytest.raises(BadInput, match="delete this shard's folder"):
        Results(parts, doubt=9).restore(RowIndex())


@pytest.mark.parametrize("bucket", ["too_long", "refused_by_server", "server_error"])
def test_a_server_that_refuses_everything_is_to_blame_and_no_row_is_spent(bucket):
    parts = ListParts()
    results = Results(parts, doubt=3)
    results.add(reject(1, bucket))
    results.add(reject(2, "no_prompt"))
    results.add(reject(3, bucket))
    with pytest.raises(BadInput, match=f"refused all of the first 3 rows.*{bucket}: why.*--max-tokens"):
        results.add(reject(4, bucket))
    assert parts.ids == []


def test_refusals_count_once_something_is_answered():
    parts = ListParts()
    results = Results(parts, doubt=3)
    for row in (reject(1), reject(2), answer(3), reject(4), reject(5), reject(6), reject(7)):
        results.add(row)
    results.end()
    assert sorted(parts.ids) == ["1", "2", "3", "4", "5", "6", "7"]


def test_after_a_restart_earlier_answers_speak_for_the_server():
    results = Results(ListParts(answer(0)), doubt=1)
    results.restore(RowIndex())
    results.add(reject(1))
    results.end()
    assert results.counts["rows"] == 2


def asked(*rows, expected=None):
    """The results and what is written, with `rows` finished in this order and asked in that of `expected`."""
    parts = ListParts()
    results = Results(parts, doubt=1000)
    for row in expected or rows:
        results.expect(row["id"])
    for row in rows:
        results.add(row)
    return results, parts


def test_a_source_whose_first_hundred_rows_are_nearly_all_rejected_is_refused_and_no_reject_is_spent():
    rows = [answer(number) if number < 5 else reject(number, "image") for number in range(100)]
    with pytest.raises(BadInput, match=r"95 of the first 100 rows are rejected as image \(why\).*--column"):
        asked(*rows)
    results, parts = asked(*rows[:99], expected=rows)
    assert sorted(parts.ids) == [str(number) for number in range(5)]
    results.add(answer(99))
    assert len(parts.ids) == 100  # of which 94 are rejects: these are the rows' own


def test_the_first_hundred_are_the_sources_whatever_finishes_first():
    slow, quick = [answer(number) for number in range(100)], [reject(1000 + number, "image") for number in range(200)]
    results, parts = asked(*quick, expected=slow + quick)
    for row in slow:
        results.add(row)
    assert len(parts.ids) == 300


@pytest.mark.parametrize(
    "bucket,advice", [("truncated", "--max-tokens"), ("too_long", "--max-tokens"), ("x", "column")]
)
def test_a_source_of_fewer_rows_is_judged_by_all(bucket, advice):
    results, parts = asked(*(reject(number, bucket) for number in range(7)))
    with pytest.raises(BadInput, match=f"7 of the first 7 rows are rejected as {bucket}.*{advice}"):
        results.end()
    assert parts.ids == []
    results, parts = asked(answer(0), *(reject(1 + number, bucket) for number in range(7)))
    results.end()
    assert len(parts.ids) == 8


def test_rows_rejected_for_many_reasons_are_rejects():
    results, parts = asked(answer(0), *(reject(1 + number, f"reason {number % 2}") for number in range(40)))
    results.end()
    assert len(parts.ids) == 41


def test_at_the_end_rows_that_are_all_too_long_are_rejects_and_refused_ones_are_not():
    parts = ListParts()
    results = Results(parts, doubt=9)
    results.add(reject(1))
    with pytest.raises(BadInput, match="no row is answered, 1 are too_long: serve the target with a longer context"):
        results.end()
    assert parts.ids == ["1"]
    results.add(reject(2, "refused_by_server"))
    with pytest.raises(BadInput, match="refused all"):
        results.end()
    assert parts.ids == ["1"]


def test_what_utf8_cannot_hold_comes_back_as_it_was():
    parts = ListParts()
    Results(parts, doubt=9).add({**answer(1), "messages": [{"role": "assistant", "content": "\ud83d ü"}]})
    assert "ü" in parts.written[0].decode()
    assert json.loads(parts.written[0])["messages"][0]["content"] == "\ud83d ü"
