"""SGLang's request log: `[date time] {json}` lines, as `--log-requests --log-requests-format json` writes them.

SGLang 0.5.23 (srt/utils/request_logger.py, log_utils.py) writes `HOST_RANK.log` into each `--log-requests-target`,
moved every hour to `HOST_RANK.log.DATE`, and up to three events for a request: `request.received.openai` with the body,
from level 2 on, and `request.received` and `request.finished` with what became of it. A request is one row, the first
event's. At level 2, the default, texts and lists of more than 2,048 are cut to their two ends with nothing but "..."
between; at level 3 nothing is cut.
"""

import re
from typing import Any

from spec.conversations.json_lines import parsed
from spec.conversations.requests.bodies import none_of, row_of
from spec.conversations.rows import Row

NAME = re.compile(r"\.log(\.\d{4}-\d\d-\d\d[\d_-]*)?(\.gz)?$")  # as a file's name ends
LEVEL = "log with --log-requests --log-requests-format json --log-requests-level 3"
_LINE = re.compile(rb"(?:\[[^]]*\] )?(\{.*)", re.DOTALL)
_TEXT = re.compile(rb"(\[[^]]*\] )?(Receive|Receive OpenAI|Finish): obj=")
_HALF, _MARK = 1024, "..."


def row_in(line: bytes) -> Row | None:
    """The request of a line; None for a further event of a request, whose row is another line's."""
    if _TEXT.match(line):
        return none_of(line, "text_log", f"a request in SGLang's text format, which cannot be read back; {LEVEL}")
    found = _LINE.match(line)
    event = parsed(found[1]) if found else {}
    name, body = event.get("event"), event.get("obj")
    if name == "request.received.openai":
        if _is_cut(body):
            return none_of(line, "cut_by_log", f"cut: of a text or list only the ends were logged; {LEVEL}")
        return row_of(body, event)
    if name == "request.received" and isinstance(body, dict) and _is_native(body):
        return none_of(line, "not_chat", "a request of /generate")
    if name in ("request.received", "request.finished"):
        return None
    return none_of(line, "not_a_request", "no event of SGLang's request log")


def _is_native(body: Row) -> bool:
    """Asked of /generate itself: the OpenAI endpoints, which had their own event, always set the first of these."""
    return not body.get("return_text_in_logprobs") and not str(body.get("rid")).startswith("HEALTH_CHECK")


def _is_cut(value: Any) -> bool:
    """Whether anything within was cut to its ends, which shows in its length and middle alone."""
    if isinstance(value, str):
        return len(value) == 2 * _HALF + len(_MARK) and value[_HALF:-_HALF] == _MARK
    if isinstance(value, list):
        return (len(value) == 2 * _HALF + 1 and value[_HALF] == _MARK) or any(map(_is_cut, value))
    return isinstance(value, dict) and any(map(_is_cut, value.values()))
