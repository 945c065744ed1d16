"""Content that is a list of parts: text goes to the server as it is, the rest is a bucket with its name."""

import pytest

from spec.conversations.rows import Reject, Said, turns_to_answer
from spec.samples.template import ChatTemplate
from tests import chat_tokenizers

TEXT = [{"type": "text", "text": "What"}, {"type": "text", "text": "is it?"}]


def test_text_parts_are_sent_as_they_are():
    assert turns_to_answer([Said("user", TEXT)]) == [[{"role": "user", "content": TEXT}]]


def test_what_arrow_adds_to_each_part_is_not_sent():
    parts = [part | {"image_url": None} for part in TEXT]
    assert turns_to_answer([Said("user", parts)]) == [[{"role": "user", "content": TEXT}]]


@pytest.mark.parametrize(
    ("part", "bucket"),
    [
        ({"type": "image_url", "image_url": {"url": "data:SECRET"}}, "image"),
        ({"type": "image", "image": b"SECRET"}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "SECRET"}}, "audio"),
        ({"type": "video_url", "video_url": "SECRET"}, "video"),
        ({"type": "file", "file": "SECRET"}, "not_text"),
        ({"type": "text", "text": None}, "not_text"),
        ({"type": ["text"], "text": "SECRET"}, "not_text"),
        ("SECRET", "not_text"),
        ({"type": "text", "text": "\ud83d"}, "not_text"),
    ],
    ids=str,
)
def test_other_parts_are_counted_by_name_and_their_data_is_not_kept(part, bucket):
    with pytest.raises(Reject) as rejected:
        turns_to_answer([Said("user", [*TEXT, part])])
    assert rejected.value.bucket == bucket and "SECRET" not in rejected.value.detail


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": " "}]], ids=str)
def test_no_text_in_any_part(content):
    with pytest.raises(Reject):
        turns_to_answer([Said("user", content)])


def test_where_the_server_gives_no_tokens_parts_are_joined_as_it_joins_them():
    template = ChatTemplate(chat_tokenizers.qwen3(), {})
    joined = template.prompt([{"role": "user", "content": "What is it?"}])
    assert template.prompt([{"role": "user", "content": TEXT}]) == joined
