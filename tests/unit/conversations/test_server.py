"""What each answer of the server is taken for, and how long its silence is borne."""

import asyncio
import time

import pytest

from spec.conversations import token_ids
from spec.conversations.rows import Reject
from spec.conversations.server import Sampling, Server
from spec.errors import BadInput, PassingFault
from tests.stub_server import END, Asked, Reply, StubServer, answer_to, prompt_ids, too_long, written_ids

HELLO = [{"role": "user", "content": "hello"}]


def first_times(count, reply):
    """Behave as `reply` says for the first `count` requests."""
    left = iter([reply] * count)
    return lambda body: next(left, None)


async def ask(stub, messages=HELLO, **options):
    sampling = options.pop("sampling", Sampling())
    async with Server(stub.url, sampling, **{"patience": 20.0, **options}) as server:
        await server.connect()
        return await server.chat(messages)


async def test_an_answer_and_what_it_cost(stub):
    answer = await ask(stub)
    assert answer.message == {"role": "assistant", "content": answer_to(HELLO)}
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 1, 3)


async def test_the_servers_own_tokens_are_kept_and_are_what_is_counted(stub):
    stub.ids = True
    answer = await ask(stub)
    assert answer.prompt_ids.tolist() == prompt_ids(HELLO)
    assert answer.response_ids.tolist() == [*written_ids(answer_to(HELLO)), END]
    assert (answer.prompt_tokens, answer.completion_tokens) == (len(answer.prompt_ids), len(answer.response_ids))


async def test_with_tokens_no_usage_is_needed(stub):
    stub.ids, stub.usage = True, False
    assert (await ask(stub)).completion_tokens == len(answer_to(HELLO)) + 1


async def test_neither_usage_nor_tokens_is_said_at_once(stub):
    stub.usage = False
    with pytest.raises(BadInput, match="neither how many tokens .* nor which"):
        await ask(stub)
    assert len(stub.asked) == 1


async def test_a_server_without_tokens_is_named_once(stub, capsys):
    async with Server(stub.url, Sampling()) as server:
        await server.connect()
        for _ in range(3):
            assert (await server.chat(HELLO)).response_ids is None
    assert capsys.readouterr().err.count("gives no token ids") == 1


async def test_a_server_that_refuses_the_field_is_asked_without(stub):
    said = "Unrecognized request argument supplied: return_token_ids"
    stub.behave = lambda body: Reply(status=400, error=said) if "return_token_ids" in body else None
    async with Server(stub.url, Sampling()) as server:
        await server.connect()
        for _ in range(2):
            assert (await server.chat(HELLO)).message["content"] == answer_to(HELLO)
    assert len(stub.asked) == 3


async def test_what_the_tokenizer_is_known_by_is_asked_of_the_server(stub):
    async with Server(stub.url, Sampling()) as server:
        await server.connect()
        assert server.tokenizer is None
        stub.ids = True
        await server.connect()
        assert server.tokenizer == token_ids.fingerprint(written_ids(token_ids.PROBE))


async def test_reasoning_is_kept_apart(stub):
    stub.behave = lambda body: Reply("four", reasoning="two and two")
    answer = await ask(stub)
    assert answer.message == {"role": "assistant", "content": "four", "reasoning_content": "two and two"}


async def test_the_sampling_asked_for_is_the_sampling_sent(stub):
    sampling = Sampling(0.7, 99, 5, {"enable_thinking": False})
    await ask(stub, sampling=sampling)
    sent = stub.asked[0].body
    assert sent == {
        "model": "stub-model",
        "messages": HELLO,
        "temperature": 0.7,
        "max_tokens": 99,
        "seed": 5,
        "chat_template_kwargs": {"enable_thinking": False},
        "return_token_ids": True,
    }


async def test_the_served_model_is_taken_and_described(stub):
    async with Server(stub.url + "/v1/", Sampling()) as server:
        assert await server.connect() == ({"model": "stub-model", "revision": None}, "sglang 0.5.23")


async def test_another_model_than_asked_for_is_refused(stub):
    with pytest.raises(BadInput, match="serves stub-model, not llama"):
        await ask(stub, model="llama")
    assert not stub.asked


async def test_llama_4_served_as_text_alone_is_refused(stub):
    stub.architectures = ["Llama4ForCausalLM"]
    with pytest.raises(BadInput, match="as text alone.*serve the whole checkpoint"):
        await ask(stub)
    stub.architectures = ["Llama4ForConditionalGeneration"]
    await ask(stub)


async def test_a_server_that_comes_back_with_another_model_is_refused(stub):
    def restart(body):
        stub.model = "another"
        return ConnectionResetError()

    stub.behave = restart
    with pytest.raises(BadInput, match="serves another, not stub-model"):
        await ask(stub)


async def test_answers_as_long_as_the_context_are_refused_before_any_is_asked(stub):
    with pytest.raises(BadInput, match="--max-tokens 8192 .* context of 8192"):
        await ask(stub, sampling=Sampling(max_tokens=8192))
    assert not stub.asked


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=503, error="The request queue is full."),
        Reply(status=500, error="Internal server error"),
        Reply(status=429, error="slow down"),
        Reply(status=502, error="bad gateway"),
        Reply(finish_reason="abort"),
        ConnectionResetError(),
    ],
    ids=str,
)
async def test_passing_faults_are_tried_again(stub, reply):
    stub.behave = first_times(2, reply)
    answer = await ask(stub)
    assert answer.message["content"] == answer_to(HELLO)
    assert len(stub.asked) == 3


async def test_a_server_that_starts_late_is_waited_for(stub):
    stub.stop()
    answer = asyncio.create_task(ask(stub))
    await asyncio.sleep(0.7)
    stub.start()
    assert (await answer).message["content"] == answer_to(HELLO)


@pytest.mark.parametrize("seconds", ["1", "Wed, 21 Oct 2065 07:28:00 GMT"])
async def test_a_server_that_asks_for_time_gets_it(stub, seconds):
    stub.behave = first_times(1, Reply(status=429, headers={"Retry-After": seconds}))
    await ask(stub, patience=1.5)  # a date that far away is cut down to the patience
    assert stub.asked[1].started - stub.asked[0].started >= 1.0


@pytest.mark.parametrize(
    ("reply", "bucket"),
    [
        (too_long(), "too_long"),
        (
            Reply(
                status=400,
                error="Requested token count exceeds the model's maximum context length of 8192 tokens. You requested "
                "a total of 8200 tokens: 6152 tokens from the input messages and 2048 tokens for the completion.",
            ),
            "too_long",
        ),
        (
            Reply(status=400, error="Input length (900 tokens) exceeds the maximum allowed length (800 tokens)."),
            "too_long",
        ),
        (Reply(status=413, error="payload"), "too_long"),
        (Reply(status=400, error="Conversation roles must alternate user/assistant"), "refused_by_server"),
        (Reply(status=422, error="no"), "refused_by_server"),
    ],
)
async def test_a_row_that_the_server_refuses_is_not_asked_again(stub, reply, bucket):
    stub.behave = lambda body: reply
    with pytest.raises(Reject) as caught:
        await ask(stub)
    assert caught.value.bucket == bucket
    assert reply.error in caught.value.detail
    assert len(stub.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_what_no_retry_mends_ends_the_step(stub, status):
    stub.behave = lambda body: Reply(status=status, error="no")
    with pytest.raises(BadInput, match=f"answers {status} .*(SGL_SPEC_API_KEY|--base-url)"):
        await ask(stub)
    assert len(stub.asked) == 1


async def test_a_404_from_a_server_that_has_answered_is_a_fault_on_the_way(stub):
    async with Server(stub.url, Sampling(), patience=20.0) as server:
        await server.connect()
        await server.chat(HELLO)
        stub.behave = first_times(1, Reply(status=404, error="default backend - 404"))
        await server.chat(HELLO)


async def test_a_row_that_the_server_fails_on_alone_is_given_up(stub):
    stub.behave = lambda body: Reply(status=500, error="boom") if body["messages"] == HELLO else None
    with pytest.raises(Reject) as caught:
        await ask(stub)
    assert caught.value.bucket == "server_error"
    assert "boom" in caught.value.detail


async def test_a_server_that_fails_on_every_row_is_given_up_and_the_rows_are_not(stub):
    stub.behave = lambda body: Reply(status=500, error="boom")
    started = time.monotonic()
    with pytest.raises(PassingFault, match="no answer for 2 s .*boom.*run this again"):
        await ask(stub, patience=2.0)
    assert 2.0 <= time.monotonic() - started < 6.0


async def test_a_server_that_is_not_there_is_given_up_after_patience(stub):
    stub.stop()
    started = time.monotonic()
    with pytest.raises(PassingFault, match=f"{stub.url} gave no answer for 1 s"):
        await ask(stub, patience=1.0)
    assert 1.0 <= time.monotonic() - started < 5.0


async def test_an_answer_that_takes_too_long_is_a_fault(stub):
    stub.delay = (5.0, 5.0)
    with pytest.raises(PassingFault, match="no answer within 0 s"):
        await ask(stub, patience=1.0, request_timeout=0.3)


async def watched(stub, patience):
    async with Server(stub.url, Sampling(), patience=patience) as server:
        await server.connect()
        watch = asyncio.create_task(server.watch())
        chat = asyncio.create_task(server.chat(HELLO))
        done, pending = await asyncio.wait([watch, chat], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return done.pop()


async def test_a_server_that_hangs_is_given_up(stub):
    stub.delay = (30.0, 30.0)
    stub.healthy = False
    with pytest.raises(PassingFault, match="neither requests nor /health"):
        (await watched(stub, 1.0)).result()


async def test_a_server_that_is_slow_and_alive_is_not(stub):
    stub.delay = (3.0, 3.0)
    assert (await watched(stub, 1.0)).result().message["content"] == answer_to(HELLO)
    assert stub.probes >= 3


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "http://", "http://127.0.0.1:99999", "ftp://host", ""])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(BadInput, match="not a URL"):
        Server(url, Sampling())


async def test_something_that_is_no_chat_server_is_refused(stub):
    async with Server(stub.url + "/nowhere", Sampling()) as server:
        with pytest.raises(BadInput, match="404 .*--base-url"):
            await server.connect()


async def test_the_key_goes_along(stub):
    headers = []
    stub.behave = lambda body: headers.append(stub.asked[-1].authorization)
    await ask(stub, api_key="secret")
    assert headers == ["Bearer secret"]


def test_the_stub_measures_what_is_in_flight():
    stub = StubServer()
    stub.asked = [Asked({}, "", 0.0, 4.0), Asked({}, "", 0.0, 2.0), Asked({}, "", 2.0, 4.0), Asked({}, "", 1.0, 2.0)]
    assert stub.mean_in_flight(0.0, 1.0) == pytest.approx(9 / 4)
    assert stub.mean_in_flight(0.25, 0.5) == pytest.approx(3.0)
