"""A dataset's row as a conversation to answer: what was said by whom, and where an answer is due.

Three kinds of column are known: lists of `role`/`content` messages, lists of `from`/`value` messages (ShareGPT,
Magpie), and bare prompts. The dataset's own answers count for a row's id and are used for nothing else, but in rows
with tools, which `spec.conversations.tools` reads.
"""

import json
import re
from contextlib import suppress
from typing import Any, NamedTuple

from spec.errors import BadInput

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant", "content": text, or a list of text parts}
Row = dict[str, Any]

UNREADABLE = "\0unreadable"  # the one column of a row that cannot be used: [why, what stands there, its own bucket]
NOT_MESSAGES = "\0not_messages"  # the role of text where messages are wanted
NO_COLUMN = "\0no_column"  # the role of [the column that is read, the one that a row has instead]
_CONVERSATIONS = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "instruction", "question", "query", "text")
_CHAT = re.compile(  # where an answer begins in a chat that is one text
    r"<\|im_start\|>assistant|<\|start_header_id\|>assistant|<\|header_start\|>assistant|<\|assistant\|>|\[/INST\]"
    r"|<start_of_turn>model|(?:^|### ?)(?:assistant|response|gpt)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_SYSTEM = ("system", "system_prompt")  # columns beside the conversation
BESIDE = (*_SYSTEM, "input", "tools", "functions")  # what is read of a row next to its conversation
KNOWN = (*_CONVERSATIONS, *_PROMPTS, *BESIDE)
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}


class Reject(Exception):
    """Why a row can have no answer: a bucket's name, which is counted, and a detail for people."""

    def __init__(self, bucket: str, detail: str = ""):
        super().__init__(f"{bucket}: {detail}")
        self.bucket = bucket
        self.detail = detail[:500]


class Said(NamedTuple):
    """One message as the dataset gives it; `content` is a string or text parts in all rows that can be answered."""

    role: Any
    content: Any


def choose_column(row: Row, wanted: str | None = None) -> str:
    """The column to read, judged by a first row. Raises `BadInput` that lists the columns where none is known."""
    seen = ", ".join(sorted(row)) or "none"
    if wanted is not None:
        if wanted not in row:
            raise BadInput(f"the dataset has no column {wanted!r}; its columns: {seen}")
        return wanted
    for name in (*_CONVERSATIONS, *_PROMPTS):
        if name in row:
            if isinstance(row[name], str) and name in _PROMPTS and (marks := _CHAT.search(row[name])):
                raise BadInput(
                    f"column {name!r} holds whole chats, their answers too ({marks[0].strip()!r} stands in its first "
                    f"row); name a column of messages, or take it as bare prompts with --column {name}"
                )
            return name
    raise BadInput(
        f"no column that is known to hold prompts; the dataset's columns: {seen}; wanted: messages (role/content), "
        f"conversations (from/value) or one of {', '.join(_PROMPTS)}; or name the column of prompts with --column"
    )


def is_conversation(row: Row) -> bool:
    """Whether a row has a column of messages, by its name."""
    return any(name in row for name in _CONVERSATIONS)


def messages_in(row: Row, column: str) -> list[Any]:
    """A row's messages as they stand there; [] where the column is empty. A system prompt may have its own column."""
    if UNREADABLE in row:
        return [{"role": UNREADABLE, "content": row[UNREADABLE]}]
    value = row.get(column)
    if value is None:
        other = next((name for name in (*_CONVERSATIONS, *_PROMPTS) if row.get(name) is not None), None)
        return [] if other is None or column in row else [{"role": NO_COLUMN, "content": [column, other]}]
    if isinstance(value, str) and column in _CONVERSATIONS:
        value = _parsed(value)
    if isinstance(value, list):
        messages = value
    else:
        context = row.get("input") if column == "instruction" else None  # Alpaca: what the instruction is about
        messages = [{"role": "user", "content": f"{value}\n\n{context}" if context else value}]
    system = next((row[name] for name in _SYSTEM if name != column and row.get(name)), None)
    first = said_in(messages[0]).role if messages else None
    begun = isinstance(first, str) and _ROLES.get(first.lower()) == "system"
    return messages if system is None or begun else [{"role": "system", "content": system}, *messages]


def conversation_in(row: Row, column: str) -> list[Said]:
    """What is said in a row, whatever it is."""
    return [said_in(message) for message in messages_in(row, column)]


def said_in(message: Any) -> Said:
    if not isinstance(message, dict):
        return Said(None, message)
    content = message.get("content") if message.get("content") is not None else message.get("value")
    return Said(message.get("role") or message.get("from"), content)


def _parsed(text: str) -> Any:
    """Messages that are stored as JSON text; text that is none is left, for its row to be rejected."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, list) else [{"role": NOT_MESSAGES, "content": text}]


def turns_to_answer(conversation: list[Said]) -> list[list[Message]]:
    """The messages to send before each answer: [[system, user], [user], ...].

    An answer is due wherever the dataset has one, and after a last user message. What an assistant says before the
    first user (some ShareGPT rows begin in the middle) is left out. Raises `Reject`.
    """
    turns: list[list[Message]] = []
    waiting: list[Message] = []
    for said in conversation:
        role = role_of(said)
        if role == "system" and said.content == "":
            continue  # how ShareGPT says that there is none; sent, it would silence the template's default
        if role != "assistant":
            waiting.append({"role": role, "content": content_of(said)})
        elif _has_user(waiting):
            turns.append(waiting)
            waiting = []
    if _has_user(waiting):
        turns.append(waiting)
    if not turns:
        raise Reject("no_prompt", "no user turn")
    return turns


def said_by_users(conversation: list[Said]) -> list[str]:
    """The text of each user turn, of whatever can be read; what rows with the same prompt have in common."""
    texts = []
    for said in conversation:
        with suppress(Reject):
            if role_of(said) == "user":
                content = content_of(said)
                texts.append(content if isinstance(content, str) else " ".join(part["text"] for part in content))
    return texts


def role_of(said: Said) -> str:
    if said.role == UNREADABLE:
        raise Reject("unreadable", said.content[0])
    if said.role == NOT_MESSAGES:
        raise Reject("not_messages", "text where a list of messages is wanted, and not as JSON")
    if said.role == NO_COLUMN:
        raise Reject("no_column", "no column {!r}, which is read of all rows; this one has {!r}".format(*said.content))
    if not isinstance(said.role, str):
        raise Reject("unknown_role", f"{said.role!r}")
    spelled = said.role.strip().lower()
    if spelled not in _ROLES:
        raise Reject("unknown_role", f"{said.role!r}")
    return _ROLES[spelled]


def content_of(said: Said) -> str | list[dict[str, str]]:
    """Text, or text parts as they are: whether a server joins them or hands its template the list, it alone knows."""
    if not isinstance(said.content, list) or not said.content:
        return _text(said)
    parts = [part_of(part, said) for part in said.content]
    _text(Said(said.role, "".join(part["text"] for part in parts)))
    return parts


def part_of(part: Any, said: Said) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    # Arrow gives every part of a column every field: a text part has an image that is null, and the other way round.
    if isinstance(kind, str) and kind in _MEDIA:
        raise Reject(_MEDIA[kind], f"a {said.role} turn holds {_MEDIA[kind]}")  # and nothing of its data
    if kind != "text" or not isinstance(part.get("text"), str):
        raise Reject("not_text", f"a {said.role} turn holds a part that is no text")
    return {"type": "text", "text": part["text"]}


def _text(said: Said) -> str:
    content = said.content
    if not isinstance(content, str):
        raise Reject("not_text", f"a {said.role} turn holds {type(content).__name__}")
    try:
        content.encode()
    except UnicodeEncodeError as error:  # half of a character, which no tokenizer takes
        raise Reject("not_text", f"a {said.role} turn is not Unicode: {error.reason}") from error
    if role_of(said) != "system" and not content.strip():
        raise Reject("no_prompt", f"a {said.role} turn is blank")
    return content


def _has_user(messages: list[Message]) -> bool:
    return any(message["role"] == "user" for message in messages)
