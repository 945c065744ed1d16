import hashlib

from spec.samples.held_out import first_prompt, held_out_below, prompt_hash
from tests.answered import chat


def test_the_first_user_message_alone_decides():
    alone = prompt_hash(chat("Where?", "There."))
    assert alone == prompt_hash(chat("Where?", "Here.", "Why?", "So.", system="Be kind."))
    assert alone != prompt_hash(chat("Where ?", "There."))
    assert alone == int(hashlib.sha256(b"Where?").hexdigest()[:16], 16)


def test_the_prompt_ends_with_the_first_user_message():
    messages = chat("Where?", "There.", "Why?", "So.", system="Be kind.")
    assert first_prompt(messages) == messages[:2]


def test_a_share_of_the_prompts():
    below = held_out_below(0.25, list)
    held_out = sum(prompt_hash(chat(f"Question {i}")) < below for i in range(2000))
    assert 0.22 < held_out / 2000 < 0.28
    assert held_out_below(0, list) == 0


def test_a_number_of_conversations_those_with_equal_prompts_together():
    asked = ["a", "a", "b", "c", "c", "c", "d"]
    conversations = [{"messages": chat(question)} for question in asked]
    for wanted in range(1, 9):
        below = held_out_below(wanted, lambda: conversations)
        held_out = [question for question in asked if prompt_hash(chat(question)) < below]
        assert len(held_out) >= min(wanted, len(asked))
        assert all(held_out.count(question) == asked.count(question) for question in held_out)
        without_last = max(prompt_hash(chat(question)) for question in held_out)
        assert sum(prompt_hash(chat(question)) < without_last for question in asked) < wanted


def test_a_number_of_none():
    assert held_out_below(3, list) == 0
