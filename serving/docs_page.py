"""The OpenAPI document as one page that needs no script and nothing from another host: it also opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["docs_page"]

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b2733}
h2{margin-top:2.5rem;border-top:1px solid #d5dde5;padding-top:1rem}code,pre{background:#f2f5f8;border-radius:4px}
code{padding:.1em .3em}pre{padding:.8rem;overflow-x:auto}b{display:inline-block;min-width:3.5rem;color:#0b6e4f}
td{padding:.2rem 1rem .2rem 0;vertical-align:top}"""


def docs_page(document: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI document: every operation with its examples and answers."""
    info = document["info"]
    title = escape(info["title"])
    body = "".join(
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(info['description'])} The same as a document: "
        f'<a href="/openapi.json">openapi.json</a>.</p>{body}</html>'
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2><p>{escape(operation['summary'])}"]
    if "description" in operation:
        parts.append(f"<p>{escape(operation['description'])}")
    request = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in request:
        parts.append(f"<p>Example body:<pre>{escape(json.dumps(request['example'], indent=2))}</pre>")
    rows = "".join(f"<tr><td>{status}<td>{escape(meaning)}" for status, meaning in _answers(operation))
    return "".join([*parts, f"<table>{rows}</table>"])


def _answers(operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for status, answer in operation["responses"].items():
        # Added by the framework to every operation with a path parameter; what is refused here is described by us.
        if answer["description"] != "Validation Error":
            yield status, answer["description"]
