"""A request's own sampling: kept where that is asked for, checked before it is sent."""

from spec.conversations.lineage import read_run
from spec.conversations.shards import read_counts
from spec.storage import open_store
from tests.requested import user

OWN = {"temperature": 0.7, "top_p": 0.9, "max_completion_tokens": 9000, "seed": 5, "stop": ["END"], "top_k": -1}
OTHER = {"stream": True, "n": 4, "logprobs": True, "user": "u", "rid": "r", "cache_salt": "s", "lora_path": "l"}
OTHER |= {"watermark": {"key": "k"}, "custom_logit_processor": "code", "presence_penalty": 0.0, "min_tokens": 0}


def test_a_requests_own_sampling_is_kept_where_that_is_asked_for(run, exact, store, jsonl):
    body = {"messages": [user("a")], **OWN, **OTHER, "chat_template_kwargs": {"thinking": True, "x": 1}}
    lines = [{"custom_id": "1", "body": body}, {"custom_id": "2", "body": {"messages": [user("b")], "max_tokens": 7}}]
    template = ["--chat-template-kwargs", '{"thinking": false}']
    assert run("--dataset-name", jsonl(lines), "--keep-sampling", *template)[0] == 0
    first, second = (its.body for its in sorted(exact.asked, key=lambda its: its.messages[0]["content"]))
    fixed = {"model": "stub-model", "return_token_ids": True}
    its = {"messages": [user("a")], "temperature": 0.7, "top_p": 0.9, "max_tokens": 2048, "seed": 5, "stop": ["END"]}
    assert first == {**fixed, **its, "top_k": -1, "chat_template_kwargs": {"thinking": False, "x": 1}}
    rest = {"messages": [user("b")], "temperature": 0.0, "max_tokens": 7, "chat_template_kwargs": {"thinking": False}}
    assert second == {**fixed, **rest}
    assert read_run(store)["sampling"]["keep_sampling"] is True


NONSENSE = [
    {"temperature": "hot"},
    {"temperature": float("nan")},
    {"temperature": -0.1},
    {"temperature": [0.5]},
    {"top_p": -0.5},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": 0},
    {"top_k": 1.5},
    {"min_p": 2},
    {"frequency_penalty": 3},
    {"repetition_penalty": 0},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_completion_tokens": "many"},
    {"min_tokens": 9, "max_tokens": 8},
    {"seed": 2**63},
    {"seed": 0.5},
    {"stop": 5},
    {"stop": ["x"] * 33},
    {"stop_token_ids": "2"},
    {"logit_bias": {"a": 1}},
    {"logit_bias": [1]},
    {"regex": "a", "ebnf": "b"},
    {"reasoning_effort": "hard"},
    {"chat_template_kwargs": [1]},
    {"chat_template_kwargs": {"x": float("inf")}},
    {"response_format": "json"},
]


def test_nonsense_as_sampling_is_counted_and_never_sent(run, exact, store, jsonl):
    asked = [*NONSENSE, {"temperature": "0.5", "max_tokens": "5000"}, {"top_k": 1, "min_p": 0}]
    bodies = [{"messages": [user(str(number))], **own} for number, own in enumerate(asked)]
    assert (
        run("--dataset-name", jsonl([{"custom_id": "1", "body": body} for body in bodies]), "--keep-sampling")[0] == 0
    )
    assert read_counts(store)["bad_sampling"] == len(NONSENSE) and read_counts(store)["answers"] == 2
    sent = {its.messages[0]["content"]: its.body for its in exact.asked}
    assert sent.keys() == {str(len(NONSENSE)), str(len(NONSENSE) + 1)}
    text = sent[str(len(NONSENSE))]  # text of a number is one, for SGLang too; and --max-tokens stays the most
    assert (text["temperature"], text["max_tokens"]) == (0.5, 2048)


def test_without_kept_sampling_nonsense_is_nobodys_business(run, exact, store, jsonl):
    body = {"messages": [user("a")], "temperature": "hot"}
    assert run("--dataset-name", jsonl([{"custom_id": "1", "body": body}]))[0] == 0
    assert read_counts(store)["answers"] == 1


def test_kept_sampling_is_part_of_a_rows_id_and_other_sampling_is_not(run, exact, tmp_path, jsonl):
    lines = [{"custom_id": "", "body": {"messages": [user("a")], "temperature": t, "user": t}} for t in (0.1, 0.2, 0.1)]
    for keep, answers in ((["--keep-sampling"], 2), ([], 1)):
        output = tmp_path / f"run{answers}"
        assert run("--dataset-name", jsonl(lines), "--output", output, *keep)[0] == 0
        counts = read_counts(open_store(output))
        assert (counts["rows"], counts["answers"], counts["duplicate"]) == (3, answers, 3 - answers)


def test_without_requests_there_is_no_sampling_to_keep(run, stub, jsonl):
    code, said = run("--dataset-name", jsonl([{"prompt": "a"}]), "--keep-sampling")
    assert code == 2 and "rows.jsonl holds no requests" in said and not stub.asked


def test_a_request_with_tools_keeps_its_choice_of_them_where_that_is_asked_for(run, exact, jsonl):
    tools = [{"type": "function", "function": {"name": "f"}}]
    bodies = [{"messages": [user("a")], "tools": tools, "tool_choice": "required"}, {"messages": [user("b")]}]
    rows = jsonl([{"custom_id": "1", "body": {**body, "parallel_tool_calls": False}} for body in bodies])
    for options, choices in (([], ["auto", None]), (["--keep-sampling"], ["required", None])):
        exact.asked.clear()
        assert run("--dataset-name", rows, *options, "--overwrite")[0] == 0
        said = sorted((its.body for its in exact.asked), key=lambda body: body["messages"][0]["content"])
        assert [body.get("tool_choice") for body in said] == choices
