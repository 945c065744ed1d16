"""Where a target's server is and what opens it: one rule for every client. Nothing secret is ever shown.

A server is asked directly, whatever proxies the environment names: it stands on this machine or in this cluster, and a
proxy that answers in its place would be taken for it.
"""

import base64
import os
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from spec.errors import BadInput

KEY = "SGL_SPEC_API_KEY"


class Address(NamedTuple):
    url: str  # without a slash, `/v1` or credentials at its end: fit to be shown
    headers: dict[str, str]  # `Authorization`, where there is a key or a name and password in the URL


def address_of(url: str, key: str | None = None) -> Address:
    """`url` and the key from SGL_SPEC_API_KEY (`key` for another) as requests need them.

    Space around the key, as a file's last line feed, is no part of it. Raises `BadInput`, which shows neither.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise BadInput(
            f"--base-url {url.rpartition('@')[2].partition('?')[0]}: not a URL; it reads like http://127.0.0.1:30000"
        )
    where = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    plain = urlunsplit((parts.scheme, where, parts.path, "", "")).rstrip("/").removesuffix("/v1")
    key = checked_secret(KEY, os.environ.get(KEY) if key is None else key)
    if parts.username is None and parts.password is None:
        return Address(plain, {"Authorization": f"Bearer {key}"} if key else {})
    if key:
        raise BadInput(f"{plain}: a key in {KEY} and a name in the URL: a request carries one of them; leave one out")
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return Address(plain, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"})


def checked_secret(name: str, secret: str | None) -> str:
    """`secret` without space around it; "" for none. Raises `BadInput`, without it, where no header can hold it."""
    secret = (secret or "").strip()
    if not all("!" <= character <= "~" for character in secret):
        raise BadInput(f"{name}: holds a character that no key has, a space or a line feed for one; set it again")
    return secret
