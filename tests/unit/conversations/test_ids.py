import pytest

from spec.conversations.ids import RowIndex, Shard, content_hash
from spec.errors import BadInput


def test_an_id_follows_content_alone():
    same = content_hash([("user", "hello"), ("assistant", "hi")])
    assert same == content_hash([("user", "hello"), ("assistant", "hi")])
    assert len(same) == 32 and int(same, 16) >= 0
    others = [[("user", "hello")], [("human", "hello"), ("assistant", "hi")], [("user", "hellohi"), ("assistant", "")]]
    assert len({same, *map(content_hash, others)}) == 4


def test_an_id_is_the_same_on_every_machine_and_version():
    assert content_hash([("user", "grüße")]) == "c9cbca9c1184eecace2a80f31c232db9"


def test_equal_rows_are_numbered():
    index = RowIndex()
    assert [index.next_id(row) for row in ("a", "b", "a", "a")] == ["a-0", "b-0", "a-1", "a-2"]


def test_a_finished_row_is_known_and_counted_once():
    index = RowIndex()
    assert index.add_finished("a-0")
    assert not index.add_finished("a-0")
    assert index.is_finished("a-0")
    assert not index.is_finished("a-1")


def test_shards_share_out_every_row_once():
    hashes = [content_hash([("user", str(number))]) for number in range(2000)]
    shards = [Shard(number, 8) for number in range(8)]
    sizes = [sum(shard.holds(row) for row in hashes) for shard in shards]
    assert sum(sizes) == 2000
    assert min(sizes) > 180  # 250 expected, standard deviation 15


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0", "1/2/3"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(BadInput, match="I from 0 to N-1"):
        Shard.parse(text)


def test_a_shard_reads_as_it_is_written():
    assert Shard.parse("3/16") == Shard(3, 16)
    assert str(Shard(3, 16)) == "3/16"
