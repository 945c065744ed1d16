"""What must equal the server's counts, and what a plain token-by-token reading of a conversation must equal."""

import random

import pytest
from tokenizers import processors

from spec.errors import BadInput
from spec.samples.convert import RETOKENISED, TRAIN, Converter, Limits
from tests import chat_tokenizers
from tests.answered import answered, chat

OFF = {"enable_thinking": False}
LIMITS = Limits(max_length=2048, truncate=False, held_out_below=0)


def test_the_tests_llama_tokenizers_are_the_real_ones():
    from llama_models.llama3.tokenizer import Tokenizer as Llama3
    from llama_models.llama4.tokenizer import Tokenizer as Llama4

    text = "Naïve  words,\n\n\t123456 語 🦙's and <|eot_id|> <|eot|> ÀÉ"
    for converted, real in ((chat_tokenizers.llama3(), Llama3), (chat_tokenizers.llama4(), Llama4)):
        expected = real.get_instance().encode(text, bos=False, eos=False, allowed_special="all")
        assert converted(text, add_special_tokens=False).input_ids == expected


@pytest.mark.parametrize(
    ("family", "opening", "closing", "after"),
    [
        ("llama3", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", ""),
        ("llama4", "<|header_start|>{}<|header_end|>\n\n", "<|eot|>", ""),
        ("qwen3", "<|im_start|>{}\n", "<|im_end|>", "\n"),
    ],
)
def test_masks_equal_a_plain_reading_of_random_conversations(family, opening, closing, after):
    """The reference tokenises part by part, and so knows whose each token is."""
    tokenizer = getattr(chat_tokenizers, family)()
    rng = random.Random(0)
    for _ in range(20):
        contents = [made_up(rng) for _ in range(2 * rng.randint(1, 4))]
        messages = chat(*contents, system=made_up(rng))
        ids = plain(tokenizer, tokenizer.apply_chat_template(messages[:1], tokenize=False))
        mask = [0] * len(ids)
        for place, content in enumerate(contents):
            last = place == len(contents) - 1
            own = place % 2 == 1 and (last or family != "qwen3")  # Qwen3: a row for each answer, compared is the last
            header = opening.format(("user", "assistant")[place % 2])
            thought = "<think>\n\n</think>\n\n" if last and family == "qwen3" else ""
            for part, bears in ((header + thought, False), (content + closing, own), (after, False)):
                ids += plain(tokenizer, part)
                mask += [int(bears)] * len(plain(tokenizer, part))
        rows = convert(tokenizer, answered(tokenizer, messages, [text + closing for text in contents[1::2]], **OFF))
        length = rows.lengths[-1]
        assert rows.input_ids[-length:].tolist() == ids
        assert rows.loss_mask[-length:].tolist() == mask


def test_a_prompt_of_another_length_than_the_servers_is_another_tokenizer_or_template():
    tokenizer = chat_tokenizers.llama3()
    conversation = answered(tokenizer, chat("Hi", "Hello."), ["Hello.<|eot_id|>"])
    conversation["turns"][0]["prompt_tokens"] += 1
    count = conversation["turns"][0]["prompt_tokens"]
    expected = (
        f"row {conversation['id']}, answer 1: its prompt has {count - 1} tokens here and had {count} at the server"
    )
    with pytest.raises(BadInput, match=expected):
        Converter(tokenizer, [{}], LIMITS)([conversation])


def test_a_later_prompt_of_another_length_is_found_too():
    tokenizer = chat_tokenizers.llama3()
    conversation = answered(tokenizer, chat("a", "b", "c", "d"), ["b<|eot_id|>", "d<|eot_id|>"])
    conversation["turns"][1]["prompt_tokens"] -= 1
    with pytest.raises(BadInput, match="answer 2: its prompt"):
        Converter(tokenizer, [{}], LIMITS)([conversation])


def test_the_settings_of_the_chat_template_count():
    tokenizer = chat_tokenizers.qwen3()
    conversation = answered(tokenizer, chat("Hi", "Hello."), ["Hello.<|im_end|>"], **OFF)
    with pytest.raises(BadInput, match="another tokenizer or chat template"):
        Converter(tokenizer, [{}], LIMITS)([conversation])


def test_counts_of_other_answers_than_there_are():
    conversation = answered(chat_tokenizers.qwen3(), chat("Hi", "Hello."), ["Hello.<|im_end|>"])
    conversation["turns"] *= 2
    with pytest.raises(BadInput, match="1 answers, and the server's counts of 2"):
        Converter(chat_tokenizers.qwen3(), [{}], LIMITS)([conversation])


@pytest.mark.parametrize("change", [-1, 1])
def test_an_answer_of_another_length_than_the_server_wrote_is_rejected(change):
    tokenizer = chat_tokenizers.llama3()
    good = answered(tokenizer, chat("Hi", "Hello."), ["Hello.<|eot_id|>"])
    other = answered(tokenizer, chat("Ho", "Hello."), ["Hello.<|eot_id|>"])
    other["turns"][0]["completion_tokens"] += change
    converted = Converter(tokenizer, [{}], LIMITS)([other, good])
    assert converted.counts == {RETOKENISED: 1, TRAIN: 1}
    assert f"row {other['id']}: answer 1" in converted.why[RETOKENISED]


def test_an_answer_that_the_template_trims_is_rejected():
    """The server wrote blanks that Llama 3's template leaves out of the history: other tokens than it wrote."""
    tokenizer = chat_tokenizers.llama3()
    conversation = answered(tokenizer, chat("Hi", "Hello.  \n\n"), ["Hello.  \n\n<|eot_id|>"])
    assert Converter(tokenizer, [{}], LIMITS)([conversation]).counts == {RETOKENISED: 1}


def test_an_answer_whose_first_token_would_take_in_the_prompts_last_is_rejected():
    """`assistant\\n` + `\\nHello` is one token `\\n\\n` when read again; the server had two."""
    tokenizer = chat_tokenizers.qwen3(chat_tokenizers.CHATML_TEMPLATE)
    conversation = answered(tokenizer, chat("Hi", "\nHello."), ["\nHello.<|im_end|>"])
    converted = Converter(tokenizer, [{}], LIMITS)([conversation])
    assert converted.counts == {RETOKENISED: 1}
    assert "its first characters and the prompt's last are one token" in converted.why[RETOKENISED]


def test_a_tokenizer_that_trims_blanks_off_its_offsets():
    """As GPT-2's does: an answer that begins with a blank still begins with its first token."""
    tokenizer = chat_tokenizers.qwen3(chat_tokenizers.CHATML_TEMPLATE + "{# trims #}")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = convert(tokenizer, answered(tokenizer, chat("Hi", "  Hello."), ["  Hello.<|im_end|>"]))
    assert tokenizer.decode(row.input_ids[row.loss_mask == 1]) == "  Hello.<|im_end|>"


def test_an_answer_cut_off_at_its_limit_has_no_end_of_turn():
    tokenizer = chat_tokenizers.llama3()
    conversation = answered(tokenizer, chat("Count.", "One, two,"), ["One, two,"])
    conversation["turns"][0]["finish_reason"] = "length"
    row = convert(tokenizer, conversation)
    assert tokenizer.decode(row.input_ids[row.loss_mask == 1]) == "One, two,"
    assert tokenizer.decode(row.input_ids[-1:]) == "<|eot_id|>"


def test_a_conversation_that_the_template_refuses_is_named():
    tokenizer = chat_tokenizers.qwen3("{{ raise_exception('roles must alternate') }}")
    conversation = {"id": "7-0", "messages": chat("Hi", "Hello."), "turns": [{}]}
    with pytest.raises(BadInput, match="row 7-0, the chat template refuses the messages .roles must alternate"):
        Converter(tokenizer, [{}], LIMITS)([conversation])


def test_a_tokenizer_without_a_chat_template():
    tokenizer = chat_tokenizers.qwen3("")
    with pytest.raises(BadInput, match="no chat template"):
        Converter(tokenizer, [{}], LIMITS)


def convert(tokenizer, conversation):
    template = OFF if "enable_thinking" in tokenizer.chat_template else {}
    converted = Converter(tokenizer, [template], LIMITS)([conversation])
    assert converted.counts == {TRAIN: 1}, converted.why
    return converted.rows[TRAIN]


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def made_up(rng: random.Random) -> str:
    """Text that does not begin or end with a blank, which templates trim."""
    pieces = ["word", " is", "  two", "\n\n", "\n", " 語", "🦙", "123", "e\u0301", "<b>", "...", "'s", "\t", " <think>"]
    return "A" + "".join(rng.choices(pieces, k=rng.randint(1, 12))) + "z"
