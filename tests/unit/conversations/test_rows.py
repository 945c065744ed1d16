import pytest

from spec.conversations.rows import Reject, choose_column, conversation_in, turns_to_answer
from spec.errors import BadInput

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "hello"}
THEIRS = {"role": "assistant", "content": "the dataset's own answer"}


def turns(row, column="messages"):
    return turns_to_answer(conversation_in(row, column))


def rejected(row, column="messages"):
    with pytest.raises(Reject) as caught:
        turns(row, column)
    return caught.value.bucket


def test_an_answer_is_due_where_the_dataset_has_one_and_its_own_is_gone():
    row = {"messages": [SYSTEM, USER, THEIRS, {"role": "user", "content": "more"}, THEIRS]}
    assert turns(row) == [[SYSTEM, USER], [{"role": "user", "content": "more"}]]


def test_an_answer_is_due_after_a_last_user_message():
    assert turns({"messages": [USER, THEIRS, USER]}) == [[USER], [USER]]


def test_users_in_a_row_get_one_answer():
    assert turns({"messages": [USER, USER, THEIRS, THEIRS]}) == [[USER, USER]]


def test_what_an_assistant_says_before_any_user_is_left_out():
    assert turns({"messages": [THEIRS, USER, THEIRS]}) == [[USER]]


def test_sharegpt_and_magpie_rows_are_read_alike():
    row = {
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "hello"},
            {"from": "gpt", "value": "theirs"},
        ]
    }
    assert turns(row, "conversations") == [[SYSTEM, USER]]
    row = {"conversations": [{"from": "user", "value": "hello"}, {"from": "assistant", "value": "theirs"}]}
    assert turns(row, "conversations") == [[USER]]


def test_an_empty_system_message_is_none_at_all():
    assert turns({"messages": [{"role": "system", "content": ""}, USER]}) == [[USER]]


def test_columns_that_arrow_fills_with_nulls_are_as_good_as_absent():
    row = {"messages": [{"role": "user", "content": "hello", "name": None, "tool_calls": None, "from": None}]}
    assert turns(row) == [[USER]]


def test_a_bare_prompt_is_a_user_turn():
    assert turns({"prompt": "hello"}, "prompt") == [[USER]]


def test_an_instruction_comes_with_its_input():
    assert turns({"instruction": "Add.", "input": "1 2"}, "instruction") == [
        [{"role": "user", "content": "Add.\n\n1 2"}]
    ]
    assert turns({"instruction": "hello", "input": ""}, "instruction") == [[USER]]


@pytest.mark.parametrize(
    ("messages", "bucket"),
    [
        (None, "no_prompt"),
        ([], "no_prompt"),
        ([SYSTEM], "no_prompt"),
        ([SYSTEM, THEIRS], "no_prompt"),
        ([{"role": "user", "content": "  \n"}], "no_prompt"),
        ([{"role": "narrator", "content": "once"}], "unknown_role"),
        ([{"content": "who says this?"}], "unknown_role"),
        (["just text"], "unknown_role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image"),
        ([{"role": "user", "content": None}], "not_text"),
        ([{"role": "user", "content": "\ud800"}], "not_text"),
    ],
)
def test_a_row_that_cannot_be_answered_is_rejected_by_name(messages, bucket):
    assert rejected({"messages": messages}) == bucket


def test_a_prompt_that_is_no_text_is_rejected_by_name():
    assert rejected({"prompt": 7}, "prompt") == "not_text"


def test_columns_are_chosen_by_how_much_they_say():
    assert choose_column({"prompt": "", "messages": [], "id": 1}) == "messages"
    assert choose_column({"instruction": "", "conversations": [], "response": ""}) == "conversations"
    assert choose_column({"id": 1, "question": "", "answer": ""}) == "question"
    assert choose_column({"prompt": "", "mine": ""}, "mine") == "mine"


def test_columns_that_nobody_knows_are_listed():
    with pytest.raises(BadInput, match="columns: blob, id; wanted: messages .*--column"):
        choose_column({"id": 1, "blob": ""})
    with pytest.raises(BadInput, match="no column 'mine'; its columns: prompt"):
        choose_column({"prompt": ""}, "mine")
