"""What is said of two versions of a table's columns."""

from __future__ import annotations

import json

from memory_writer import MemoryWriter

from streaming.capture.tables import CapturedColumn, SchemaHistory, TableSchema, differences, schemas_topic


def schema(*columns: CapturedColumn) -> TableSchema:
    return TableSchema("public", "t", columns, ())


def column(name: str, number: int | None = None, kind: str = "text", *, nullable: bool = True) -> CapturedColumn:
    return CapturedColumn(name, kind, "string", nullable, number)


def test_numbers_tell_a_renamed_column_from_a_new_one() -> None:
    before = schema(column("a", 1), column("b", 2), column("c", 3, "int"))
    assert differences(before, schema(column("b", 1), column("a", 2, "int"), column("c", 4, "int"))) == [
        "dropped column c",
        "renamed column a to b",
        "renamed column b to a",
        "column a from text to int",
        "added column c int",
    ]


def test_without_numbers_names_do_and_what_was_said_of_them() -> None:
    before = schema(column("a"), column("b", nullable=False))
    after = schema(column("a"), column("b"))
    assert differences(before, after) == ["column b may be null"]
    assert differences(before, schema(column("a", 1), column("c", 2))) == ["dropped column b", "added column c text"]
    assert differences(before, after, {"a": "gone"}) == ["column b may be null"]
    assert differences(before, schema(column("a"), column("B")), {"b": "a"}) == [
        "dropped column b",
        "added column a text",
        "renamed column a to B",
    ]


def test_schemas_are_the_same_whether_or_not_numbers_are_known() -> None:
    known, unknown = schema(column("a", 1)), schema(column("a"))
    assert (known, known.digest) == (unknown, unknown.digest)


def test_names_that_change_again_are_followed_back() -> None:
    history = SchemaHistory("shop")
    writer = MemoryWriter({})
    place = {"epoch": 1, "commit": 1}
    history.record(schema(column("a"), column("x")), writer, place, 1)
    history.rename("public.t", {"a": "B"})
    history.rename("public.t", {"b": "c", "x": "b"})
    history.rename("public.t", {"b": "c", "c": "b"})
    history.record(schema(column("b"), column("c")), writer, place, 2)
    history.record(schema(column("b"), column("a")), writer, place, 3)
    assert [json.loads(record.value or b"")["changed"] for record in writer.log[schemas_topic("shop"), 0]] == [
        ["first seen"],
        ["renamed column a to b", "renamed column x to c"],
        ["dropped column c", "added column a text"],
    ]
