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


def test_a_table_that_looks_again_as_it_did_has_another_version() -> None:
    writer, history = MemoryWriter({}), SchemaHistory("shop")
    one, two = schema(column("a")), schema(column("a"), column("b"))
    for number, look in enumerate((one, two, one), 1):
        assert history.version(look) is None
        assert history.record(look, writer, {"epoch": 1, "commit": 10 * number}, number) == number
        assert history.version(look) == number
    records = [json.loads(record.value or b"") for record in writer.log[schemas_topic("shop"), 0]]
    assert [record["changed"] for record in records] == [["first seen"], ["added column b text"], ["dropped column b"]]
    assert (history.seen(one), history.seen(two), history.seen(schema(column("x")))) == (3, 2, None)
    for commit, found in ((5, 1), (10, 1), (19, 1), (20, 2), (30, 3), (99, 3)):
        again = SchemaHistory.load("shop", records)
        assert again.begin("public.t", (1, commit)) == (one, two, one)[found - 1]
        for number, look in list(enumerate((one, two, one), 1))[found - 1 :]:
            assert again.version(look) == number
        assert again.version(two) is None
    assert SchemaHistory.load("shop", records).begin("public.u", (1, 99)) is None


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
