"""One YAML file as plain values, and the line on which each of them stands.

What is not YAML is refused in our own words; what the values should be is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from catalog.problems import Loc, Problem, shown

__all__ = ["NotYaml", "YamlFile", "read_yaml"]

# What ruamel.yaml says, by how it begins, and what it means to whoever wrote the file: found, and allowed.
_UNFINISHED: Mapping[str, str] = {
    "expected ',' or ']'": "a list that is not closed, allowed is [a, b]",
    "expected ',' or '}'": "a mapping in braces that is not closed, allowed is {a: 1, b: 2}",
    "found unexpected end of stream": "a quote that is not closed, allowed is one at either end",
    "could not find expected ':'": "a line without ': ', allowed is field: value",
}
_MISPLACED: Mapping[str, str] = {
    "mapping values are not allowed": "': ' where no field can begin, allowed is one field to a line, indented like "
    "its neighbours, with text in quotes if it has ': ' in it",
    "found character '\\t'": "a tab, allowed are spaces",
    "found character": "text that begins with a sign of YAML's own, allowed is such text in quotes",
    "found undefined alias": "a reference (*) to what has no anchor (&), allowed is text with * in quotes",
    "but found another document": "a second document (---), allowed is one in a file",
    "found unknown escape character": "an unknown escape after \\, allowed is '...' where \\ is meant as it is",
    "special characters are not allowed": "a control character, allowed is printable text",
}
_OTHERWISE = "text that does not fit its place, allowed is field: value, or - item, in even indentation"


class NotYaml(ValueError):
    """The file cannot be read as a YAML mapping; `problem` says where and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True)
class YamlFile:
    """A file and its values: mappings as dicts with text for keys, lists as tuples."""

    path: Path
    values: dict[str, Any]
    _tree: CommentedMap

    def line(self, loc: Loc) -> int:
        """The line, from 1, of the deepest part of `loc` that the file has."""
        line, node = 1, self._tree
        for part in loc:
            found = _below(node, part)
            if found is None:
                break
            line, node = found
        return line

    def problem(self, loc: Loc, text: str) -> Problem:
        return Problem(str(self.path), self.line(loc), text)


def read_yaml(path: Path) -> YamlFile:
    """Read a file. Raises NotYaml."""
    try:
        text = path.read_bytes().decode("utf-8")
        tree = YAML(typ="rt").load(StringIO(text))
    except OSError as error:
        raise NotYaml(Problem(str(path), 1, f"found a file that cannot be read ({error.strerror})")) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise NotYaml(Problem(str(path), line, "found bytes that are not UTF-8, allowed is UTF-8 text")) from None
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise NotYaml(Problem(str(path), line, _not_yaml(error.reason))) from None
    except MarkedYAMLError as error:
        raise NotYaml(Problem(str(path), _line_of(error), _said(error))) from None
    if not isinstance(tree, CommentedMap):
        found = "nothing" if tree is None else "a list" if isinstance(tree, CommentedSeq) else shown(tree)
        raise NotYaml(Problem(str(path), 1, f"found {found} in the file, allowed is a mapping of fields"))
    return YamlFile(path, _plain(tree), tree)


def _said(error: MarkedYAMLError) -> str:
    if isinstance(error, DuplicateKeyError):
        key = re.search(r'duplicate key "(.*?)"', str(error.problem))
        return f"found field {key[1] if key else ''!r} a second time, allowed is once"
    return _not_yaml(str(error.problem))


def _not_yaml(problem: str) -> str:
    told = (text for begin, text in {**_UNFINISHED, **_MISPLACED}.items() if problem.startswith(begin))
    return f"found text that is not YAML: {next(told, _OTHERWISE)}"


def _line_of(error: MarkedYAMLError) -> int:
    """Where what is not finished begins; else where the reader stopped."""
    begins = str(error.problem).startswith(tuple(_UNFINISHED)) and error.context_mark
    mark = begins or error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _below(node: Any, part: str | int) -> tuple[int, Any] | None:
    """The line and value of a field or list item."""
    if isinstance(node, CommentedMap):
        key = next((key for key in node if str(key) == part), None)
        # A field that was merged in (<<) has no line of its own.
        return None if key is None or key not in node.lc.data else (node.lc.key(key)[0] + 1, node[key])
    if isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
        return node.lc.item(part)[0] + 1, node[part]
    return None


def _plain(node: Any) -> Any:
    """Lists become tuples, as the specs have them; numbers and text lose what is known of their spelling."""
    if isinstance(node, CommentedMap):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return tuple(_plain(value) for value in node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
