"""A request's own sampling parameters, and which of them SGLang 0.5.23 takes.

Types as its chat endpoint has them (`ChatCompletionRequest` in srt/entrypoints/openai/protocol.py), which reads "0.7"
as a number too; ranges as srt/sampling/sampling_params.py has them (`SamplingParams.verify`, `normalize`).
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spec.conversations.rows import Reject, Row

_Patterns = Annotated[list[str], Field(max_length=32)]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max"]


class Own(BaseModel):
    """What decides the answer; the defaults are what it is where nothing is decided.

    `stream`, `n`, `logprobs` and what else shapes only the reply are none of it, nor is whatever names a caller, a
    session, an adapter, a secret or code to run.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Annotated[int, Field(ge=1)] | Literal[-1] | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    presence_penalty: float = Field(0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d+$")], float] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    min_tokens: int = Field(0, ge=0)
    max_tokens: int | None = Field(None, ge=1)  # 0, which SGLang takes for no limit at all, too
    stop: str | _Patterns | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | _Patterns | None = None
    ignore_eos: bool = False
    no_stop_trim: bool = False
    regex: str | None = None
    ebnf: str | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: _Effort | Annotated[float, Field(ge=0, le=0.99)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tool_choice: Literal["auto", "required", "none"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _together(self) -> "Own":
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens above max_tokens")
        if self.regex is not None and self.ebnf is not None:
            raise ValueError("regex and ebnf exclude one another")
        return self


NEUTRAL = {name: field.default for name, field in Own.model_fields.items()}


def sampling_in(body: Row) -> Row:
    """A request's own parameters as they stand there, less those that say what would be so without them."""
    own = {name: body[name] for name, neutral in NEUTRAL.items() if body.get(name) not in (None, neutral)}
    if body.get("max_completion_tokens") is not None:  # the newer name, which counts where both are given
        own["max_tokens"] = body["max_completion_tokens"]
    if not body.get("tools") or own.get("tool_choice") == "none":
        own.pop("tool_choice", None)
    return own


def checked(own: Row | None) -> Row | None:
    """What can be sent of `sampling_in`. Raises `Reject` for what the server does not take."""
    if own is None:
        return None
    try:
        sent = Own.model_validate(own).model_dump(exclude_unset=True)
        json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Reject("bad_sampling", f"{first['loc'][0] if first['loc'] else 'sampling'}: {first['msg']}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Reject("bad_sampling", f"nothing that JSON can hold: {type(error).__name__}") from error
    return sent
