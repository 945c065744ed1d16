"""Requests as an OpenAI client makes them, and how SGLang logs them."""

import json

from spec.conversations.rows import UNREADABLE
from spec.conversations.sources import open_source


def user(text):
    return {"role": "user", "content": text}


def event(body, name="request.received.openai"):
    return f"[2026-11-29 21:53:24] {json.dumps({'timestamp': '', 'event': name, 'obj': body})}\n"


def asked(stub):
    return sorted((its.messages for its in stub.asked), key=json.dumps)


def buckets(path, **options):
    """Each row as its first user text, or the bucket that it carries."""
    rows = open_source(str(path), **options).rows()
    return [row[UNREADABLE][2] if UNREADABLE in row else row["messages"][0]["content"] for row in rows]
