"""A record's bytes as text and back, exactly: the lake and SQL hold text, a log holds whatever was sent.

Text in UTF-8 is itself. All else, and text that looks like what follows, is written as `data:;base64,...`: that is no
JSON, so whoever expects an envelope refuses it, and nothing of it is lost.
"""

from __future__ import annotations

import base64

__all__ = ["ESCAPE", "to_bytes", "to_text"]

ESCAPE = "data:;base64,"


def to_text(raw: bytes) -> str:
    """The bytes as text; `to_bytes` gives them back."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return _escaped(raw)
    return _escaped(raw) if text.startswith(ESCAPE) else text


def to_bytes(text: str) -> bytes:
    """What `to_text` was given. Text that nobody escaped is its own UTF-8."""
    if text.startswith(ESCAPE):
        return base64.b64decode(text.removeprefix(ESCAPE))
    return text.encode()


def _escaped(raw: bytes) -> str:
    return ESCAPE + base64.b64encode(raw).decode("ascii")
