"""Landing what a connector sends: every type, changes sent again, tables emptied, values not sent, new columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pytest

from assets.raw import raw_assets
from catalog import keys
from catalog.column_types import NAMES
from catalog.load import Catalog
from catalog.settings import load_settings
from catalog.spec import Column, Gate, Source
from lake.query import query
from lake.tables import Lake
from resources.platform import Platform
from streaming.capture.tables import CapturedColumn, SchemaHistory, TableSchema, schemas_topic
from streaming.change import SNAPSHOT_ORDER, UNAVAILABLE
from streaming.landing import ChangedColumnsError, LandingReport, land, quarantine_waiting, schema_changes
from streaming.landing_order import Place, repeated
from streaming.landing_service import Lander, Options
from streaming.log import TopicPartition
from streaming.sqlite_log import SqliteLog
from streaming.sqlite_writer import SqliteWriter

TOPIC = "cdc.shop.things"
RAW, QUARANTINE = keys.raw("shop", "things"), keys.quarantine("shop", "things")
US = 1_700_000_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def source(*columns: tuple[str, str]) -> Source:
    declared = [Column(name="id", type="int64", description="The key.", nullable=False)]
    declared += [Column(name=name, type=kind, description="A value.") for name, kind in columns]
    return Source(
        system="shop",
        table="things",
        description="Things of every kind.",
        owner="team:data",
        domain="sales",
        columns=tuple(declared),
        gate=Gate(key=("id",), event_time="id", freshness_days=1.0),
    )


def change(
    op: str, key: int | None, commit: int, order: int = 1, *, epoch: int = 1, schema: int = 0, **row: Any
) -> Any:
    """A record as streaming.capture.sink writes it. UNAVAILABLE itself was not sent, an equal text was."""
    image = None if op == "t" else {"id": key, **row}
    placed = {"epoch": epoch, "commit": commit, "order": order} | ({"schema": schema} if schema else {})
    placed |= {"unsent": unsent} if (unsent := [name for name, value in row.items() if value is UNAVAILABLE]) else {}
    return {
        "before": image if op == "d" else None,
        "after": None if op == "d" else image,
        "source": {"ts_us": US, "headwater": placed},
        "op": op,
        "key": None if op == "t" else json.dumps({"id": key}),
    }


def append(log: SqliteLog, *changes: Any) -> None:
    texts = [json.dumps({name: part for name, part in each.items() if name != "key"}) for each in changes]
    found = [each["key"] for each in changes]
    log.append(
        {TOPIC: pa.table({"key": pa.array(found, pa.string()), "value": texts, "timestamp_us": [US] * len(texts)})}
    )


def landed(lake: Lake, *columns: str) -> list[tuple[Any, ...]]:
    rows = lake.read(RAW, [*columns, "log_offset"]).sort_by("log_offset").to_pylist()
    return [tuple(row[column] for column in columns) for row in rows]


def reasons(lake: Lake) -> list[str]:
    return [row["reason"] for row in lake.read(QUARANTINE).sort_by("log_offset").to_pylist()]


@pytest.mark.parametrize(
    ("kind", "sent", "kept"),
    [
        (
            "decimal(38,18)",
            "12345678901234567890.123456789012345678",
            Decimal("12345678901234567890.123456789012345678"),
        ),
        ("decimal(20,0)", 2**64 - 1, Decimal(2**64 - 1)),
        ("decimal(10,2)", "-0.50", Decimal("-0.50")),
        ("decimal(10,2)", "0.500", Decimal("0.50")),
        ("date", 19_000, date(2022, 1, 8)),
        ("date", -719_162, date(1, 1, 1)),
        ("time", 86_400_000_000, 86_400_000_000),
        ("timestamp", 1, datetime(1970, 1, 1, 0, 0, 0, 1)),
        ("timestamp", "2024-01-02T03:04:05.123456Z", datetime(2024, 1, 2, 3, 4, 5, 123_456)),
        ("binary", "AAH/", b"\x00\x01\xff"),
        ("binary", "", b""),
        ("json", '{"a": [1, null]}', '{"a": [1, null]}'),
        ("json", {"wkb": "AA==", "srid": None}, '{"wkb":"AA==","srid":null}'),
        ("float64", "-Infinity", float("-inf")),
        ("bool", True, True),
        ("list<int64>", [1, None], [1, None]),
        ("list<decimal(5,2)>", ["1.25"], [Decimal("1.25")]),
        ("list<list<string>>", [["a"], []], [["a"], []]),
        ("list<timestamp>", ["2024-01-01T00:00:00Z"], [datetime(2024, 1, 1)]),
        ("string", 'a"\\\n\u00e9', 'a"\\\n\u00e9'),
    ],
)
def test_every_type_lands_as_it_was(log: SqliteLog, lake: Lake, kind: str, sent: Any, kept: Any) -> None:
    append(log, change("c", 1, 1, v=sent), change("c", 2, 2, v=None))
    assert land(source(("v", kind)), log, lake, 10).reasons == {}
    assert landed(lake, "v") == [(kept,), (None,)]
    assert query(lake, "SELECT v FROM raw.shop.things").num_rows == 2


def test_a_table_that_is_opened_again_has_the_columns_that_it_was_made_with(log: SqliteLog, lake: Lake) -> None:
    """Of every type that there is, and lists of it: Delta gives back other names of what is within a list."""
    values = {"float64": 0.5, "bool": True, "timestamp": 1, "date": 1, "binary": "AAH/", "json": "{}", "string": "a"}
    columns, row = [], {}
    for kind in (*NAMES, "decimal(38,18)"):
        for depth, value in enumerate([(v := values.get(kind, 1)), [v, None], [[v], [], None]]):
            columns.append((f"v{len(columns)}", "list<" * depth + kind + ">" * depth))
            row[columns[-1][0]] = value
    for commit in (1, 2):
        append(log, change("c", commit, commit, **row))
        assert land(source(*columns), log, lake, 10).landed == 1
    first, second = landed(lake, *row)
    assert first == second
    assert None not in first


def test_a_list_of_something_else_is_another_column(log: SqliteLog, lake: Lake) -> None:
    append(log, change("c", 1, 1, v=["1.25"]))
    land(source(("v", "list<decimal(5,2)>")), log, lake, 10)
    with pytest.raises(ChangedColumnsError, match=r"v: found list<element: decimal128\(5, 2\)>"):
        land(source(("v", "list<decimal(6,2)>")), log, lake, 10)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("decimal(10,2)", "NaN"),
        ("decimal(10,2)", "0.505"),
        ("decimal(4,2)", "100.00"),
        ("date", "infinity"),
        ("date", "0000-00-00"),
        ("date", "2024-02-30"),
        ("date", -800_000),
        ("timestamp", "-infinity"),
        ("timestamp", "0044-03-15 00:00:00 BC"),
        ("timestamp", "0000-00-00 00:00:00"),
        ("time", "838:59:59"),
        ("binary", "%"),
        ("json", "not json"),
        ("list<int64>", "[0:1]={1,2}"),
        ("list<int64>", [[1], [2]]),
        ("list<int64>", [1, "x"]),
        ("string", {"invalid": "/w=="}),
    ],
)
def test_what_is_not_of_the_type_is_quarantined_with_its_text(log: SqliteLog, lake: Lake, kind: str, sent: Any) -> None:
    append(log, change("c", 1, 1, v=sent))
    land(source(("v", kind)), log, lake, 10)
    assert landed(lake, "id") == []
    text = json.dumps(sent, separators=(",", ":"))
    assert reasons(lake) == [f"v: not {'an' if kind == 'int64' else 'a'} {kind}, found {text}"]


def test_changes_that_were_sent_again_land_once(log: SqliteLog, lake: Lake) -> None:
    first = [change("c", 1, 10, 1), change("c", 2, 10, 2), change("c", 3, 11, 1)]
    append(log, *first, *first[1:], change("c", 4, 11, 2))
    report = land(source(), log, lake, 2)  # across batches too
    assert (report.read, report.landed, report.repeated) == (6, 4, 2)
    append(log, first[0], change("c", 5, 3, epoch=2))
    report = land(source(), log, lake, 10)
    assert (report.landed, report.repeated) == (1, 1)
    assert landed(lake, "id", "source_epoch", "source_position", "source_order")[-2:] == [(4, 1, 11, 2), (5, 2, 3, 1)]


def test_many_changes_at_once_are_seen_in_order(log: SqliteLog, lake: Lake) -> None:
    """More than one of DuckDB's threads takes at a time."""
    count = 150_000
    parts = duckdb.sql(
        f"""SELECT printf('{{"id":%d}}', i) AS key, {US}::BIGINT AS timestamp_us, printf('{{"before":null,"after":'
            || '{{"id":%d}},"source":{{"ts_us":{US},"headwater":{{"epoch":1,"commit":%d,"order":1}}}},"op":"c"}}', i, i)
            AS value FROM range({count}) AS numbers(i) ORDER BY i"""
    )
    log.append({TOPIC: parts.to_arrow_table()})
    report = land(source(), log, lake, count)
    assert (report.landed, report.repeated) == (count, 0)
    assert sorted(lake.read(RAW, ["log_offset"])["log_offset"].to_pylist()) == list(range(count))


def test_a_broken_change_that_was_sent_again_is_quarantined_once(log: SqliteLog, lake: Lake) -> None:
    broken = change("c", 1, 10, v="x")
    append(log, broken, broken)
    assert land(source(("v", "int64")), log, lake, 1).repeated == 1
    assert len(reasons(lake)) == 1


def test_a_dead_letter_that_was_put_through_again_lands(log: SqliteLog, lake: Lake) -> None:
    letter = change("u", 1, 4, v=4)
    letter["source"]["headwater"] = {"replayed": "a-letter", **letter["source"]["headwater"]}
    append(log, change("c", 1, 3, v=3), change("u", 2, 9, v=9), letter, change("u", 2, 9, v=9))
    report = land(source(("v", "int64")), log, lake, 10)
    assert (report.landed, report.repeated) == (3, 1)


def test_rows_of_snapshots_are_never_taken_for_repeated(log: SqliteLog, lake: Lake) -> None:
    append(
        log,
        change("c", 1, 10),
        change("t", None, 5, SNAPSHOT_ORDER),
        change("r", 1, 5, SNAPSHOT_ORDER),
        change("r", 1, 5, SNAPSHOT_ORDER),
        change("u", 1, 11),
    )
    report = land(source(), log, lake, 10)
    assert (report.landed, report.repeated) == (5, 0)
    assert landed(lake, "change_op", "id") == [("c", 1), ("t", None), ("r", 1), ("r", 1), ("u", 1)]


@pytest.mark.parametrize(
    ("places", "mark", "again", "after"),
    [
        ([(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)], None, [], (2, 1, 1)),
        ([(1, 1, 1)], (1, 1, 1), [0], (1, 1, 1)),
        ([(1, 1, 1), (1, 1, 2)], (1, 1, 1), [0], (1, 1, 2)),
        ([(1, 5, 1), (1, 4, 9), (1, 5, 1), (1, 5, 2)], None, [1, 2], (1, 5, 2)),
        ([(1, 2**62, 2), (1, 2**62, 1)], (1, 3, 3), [1], (1, 2**62, 2)),
        ([], (1, 1, 1), [], (1, 1, 1)),
    ],
)
def test_what_is_repeated(places: list[Any], mark: Any, again: list[int], after: Any) -> None:
    columns = {name: [place[n] for place in places] for n, name in enumerate(("epoch", "position", "ordinal"))}
    table = pa.table({"log_offset": range(len(places)), **columns}).cast(
        pa.schema([(name, pa.int64()) for name in ("log_offset", "epoch", "position", "ordinal")])
    )
    found, watermark = repeated(table, mark and Place(*mark))
    assert (found["log_offset"].to_pylist(), watermark) == (again, after)


def toast(log: SqliteLog) -> None:
    append(
        log,
        change("c", 1, 1, big="long", n=1),
        change("c", 2, 1, 2, big="other", n=1),
        change("u", 1, 2, big=UNAVAILABLE, n=2),
        change("u", 1, 3, big=UNAVAILABLE, n=3),
        change("u", 2, 4, big=UNAVAILABLE, n="broken"),
        change("u", 2, 5, big=UNAVAILABLE, n=5),
        change("u", 3, 6, big=UNAVAILABLE, n=6),
        change("u", 2, 7, big="sent", n=7),
        change("u", 2, 8, big=UNAVAILABLE, n=8),
        change("u", 1, 9, big=None, n=9),
        change("u", 1, 10, big=UNAVAILABLE, n=10),
        change("u", 1, 11, big="".join([*UNAVAILABLE]), n=11),
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 20])
def test_a_value_that_was_not_sent_is_the_one_before(log: SqliteLog, lake: Lake, batch: int) -> None:
    """However batches are cut: the value of the same row's change before; where that did not land, none."""
    toast(log)
    land(source(("big", "string"), ("n", "int64")), log, lake, batch)
    assert landed(lake, "id", "n", "big") == [
        (1, 1, "long"),
        (2, 1, "other"),
        (1, 2, "long"),
        (1, 3, "long"),
        (2, 7, "sent"),
        (2, 8, "sent"),
        (1, 9, None),
        (1, 10, None),
        (1, 11, UNAVAILABLE),
    ]
    lost = "big: the database did not send it (unchanged), and no earlier value has landed"
    assert reasons(lake) == ['n: not an int64, found "broken"', lost, lost]


@pytest.fixture
def recorded(log: SqliteLog, tmp_path: Path) -> Iterator[Any]:
    """Records a version of the table's schema as the connector does."""
    history = SchemaHistory("shop")
    writer = SqliteWriter(tmp_path / "log.db")
    writer.ensure([schemas_topic("shop")])

    def record(*columns: tuple[str, str], key: tuple[str, ...] = ("id",)) -> int:
        found = tuple(CapturedColumn(name, f"sql {kind}", kind) for name, kind in (("id", "int64"), *columns))
        schema = TableSchema("public", "things", found, key)
        return history.record(schema, writer, {"epoch": 1, "commit": 7}, US)

    yield record
    writer.close()


def ran(log: SqliteLog, lake: Lake, *columns: tuple[str, str], batch: int = 10) -> LandingReport:
    return land(source(*columns), log, lake, batch)


def test_an_added_column_appears_from_its_position_on(log: SqliteLog, lake: Lake, recorded: Any) -> None:
    first = recorded(("v", "int64"), ("secret", "string"))
    append(log, change("c", 1, 1, schema=first, v=1, secret="x"))
    assert ran(log, lake, ("v", "int64")).schema_changes == ()
    second = recorded(("v", "int64"), ("secret", "string"), ("vat", "decimal(12,2)"), ("tags", "list<string>"))
    append(
        log,
        change("c", 2, 2, schema=first, v=2, secret="x"),
        change("c", 3, 3, schema=second, v=3, secret="x", vat="1.50", tags=["a"]),
    )
    (change_,) = ran(log, lake, ("v", "int64")).schema_changes
    assert (change_.version, change_.position, change_.added, change_.refused) == (2, 7, ("vat", "tags"), None)
    assert change_.changed == ("added column vat sql decimal(12,2)", "added column tags sql list<string>")
    assert landed(lake, "id", "vat", "tags") == [(1, None, None), (2, None, None), (3, Decimal("1.50"), ["a"])]
    assert "secret" not in lake.schema(RAW).names  # it was there when the table was declared, and left out
    append(log, change("c", 4, 4, schema=second, v=4, secret="x", vat="2.00", tags=None))
    assert ran(log, lake, ("v", "int64")).schema_changes == ()
    third = recorded(("v", "int64"), ("secret", "string"), ("tags", "list<string>"))
    append(log, change("c", 5, 5, schema=third, v=5, secret="x", tags=[]))
    (third_change,) = ran(log, lake, ("v", "int64")).schema_changes
    assert (third_change.changed, third_change.added) == (("dropped column vat",), ())
    assert landed(lake, "id", "vat")[-2:] == [(4, Decimal("2.00")), (5, None)]
    ledger = query(lake, "SELECT relation, version, source_position, changed FROM monitoring.shop.schemas ORDER BY 2")
    assert ledger["version"].to_pylist() == [1, 2, 3]
    assert ledger["changed"].to_pylist()[2] == ["dropped column vat"]


@pytest.mark.parametrize(
    ("columns", "key", "sent", "why"),
    [
        ([("v", "date")], ("id",), 19_000, "column v is sql date (as date), the table has timestamp"),
        ([], ("id", "v"), 0, "the primary key is (id, v), the table has (id)"),
    ],
)
def test_a_version_that_does_not_fit_is_quarantined(
    log: SqliteLog, lake: Lake, recorded: Any, columns: Any, key: Any, sent: Any, why: str
) -> None:
    """Days since 1970 would land as microseconds since 1970 otherwise."""
    good = recorded(("v", "timestamp"))
    append(log, change("c", 1, 1, schema=good, v=0))
    bad = recorded(*columns, key=key) if columns else recorded(("v", "timestamp"), key=key)
    append(log, change("c", 2, 2, schema=bad, v=sent))
    again = recorded(("v", "timestamp"))
    append(log, change("c", 3, 3, schema=again, v=1))
    report = ran(log, lake, ("v", "timestamp"))
    assert landed(lake, "id") == [(1,), (3,)]
    assert reasons(lake) == [f"schema 2: {why}"]
    assert [(c.version, c.refused) for c in report.schema_changes] == [(2, f"schema 2: {why}"), (3, None)]


def test_an_array_has_the_dimensions_that_are_declared(log: SqliteLog, lake: Lake, recorded: Any) -> None:
    """The database's type does not say how many there are."""
    version = recorded(("v", "list<int64>"))
    for n, value in enumerate([[[1, 2], [3, 4]], [], [5], None, [["x"]]]):
        append(log, change("c", n, n + 1, schema=version, v=value))
    ran(log, lake, ("v", "list<list<int64>>"))
    assert landed(lake, "id", "v") == [(0, [[1, 2], [3, 4]]), (1, []), (3, None)]


def test_a_table_is_emptied_whatever_its_columns_are(log: SqliteLog, lake: Lake, recorded: Any) -> None:
    append(log, change("c", 1, 1, schema=recorded(("v", "timestamp")), v=0))
    bad = recorded(("v", "date"))
    append(log, change("t", None, 2, schema=bad), change("c", 2, 3, schema=bad, v=19_000))
    report = ran(log, lake, ("v", "timestamp"))
    assert (report.landed, report.quarantined) == (2, 1)
    assert landed(lake, "change_op", "id") == [("c", 1), ("t", None)]


def test_a_row_goes_though_no_other_of_its_version_can_land(log: SqliteLog, lake: Lake, recorded: Any) -> None:
    """What else was in it could be read as something that it is not: days as microseconds."""
    append(log, *(change("c", n, n, schema=recorded(("v", "timestamp")), v=n) for n in (1, 2)))
    bad = recorded(("v", "date"))
    append(log, change("u", 2, 3, schema=bad, v=19_000), change("d", 1, 4, schema=bad, v=19_000))
    assert (ran(log, lake, ("v", "timestamp")).quarantined) == 1
    assert landed(lake, "change_op", "id", "v")[-1] == ("d", 1, None)
    other_key = recorded(("v", "timestamp"), key=("id", "v"))
    append(log, change("d", 2, 5, schema=other_key, v=0))
    assert (ran(log, lake, ("v", "timestamp")).quarantined) == 1


def test_a_version_of_which_no_row_has_come_is_told_with_the_next(log: SqliteLog, lake: Lake, recorded: Any) -> None:
    append(log, change("c", 1, 1, schema=recorded(("v", "int64")), v=1))
    assert ran(log, lake, ("v", "int64")).schema_changes == ()
    recorded(("v", "int64"), ("extra", "int64"))
    append(log, change("c", 2, 2, schema=recorded(("v", "int64")), v=2))
    told = ran(log, lake, ("v", "int64")).schema_changes
    assert [(c.version, c.changed) for c in told] == [
        (2, ("added column extra sql int64",)),
        (3, ("dropped column extra",)),
    ]


def test_changes_of_columns_are_told_whoever_has_landed_them(
    log: SqliteLog, lake: Lake, recorded: Any, tmp_path: Path
) -> None:
    """The asset's events, each once, though a lander was there before the run; and again after a history anew."""
    things = source(("v", "int64"))
    append(log, change("c", 1, 1, schema=recorded(("v", "int64")), v=1))
    append(log, change("c", 2, 2, schema=recorded(("v", "int64"), ("vat", "int64")), v=2, vat=3))
    land(things, log, lake, 10)
    append(log, change("c", 3, 3, schema=recorded(("v", "string"), ("vat", "int64")), v="x", vat=3))
    land(things, log, lake, 10)
    catalog = Catalog((things,), (), ())
    (asset,) = raw_assets(catalog)
    platform = Platform(load_settings({"HEADWATER_HOME": str(tmp_path), "HEADWATER_NOW": "2024-01-01"}), catalog)
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            assert dg.materialize([asset], instance=instance, resources={"platform": platform}).success
        found = instance.fetch_observations(asset.key, limit=10).records
    told = [record.asset_observation for record in reversed(found)]
    assert [(event.metadata["schema_version"].value, event.metadata["added_columns"].value) for event in told] == [
        (2, "vat"),
        (3, ""),
    ]
    assert told[1].metadata["quarantined"].value
    assert "column v is sql string" in told[1].description
    assert [change_.version for change_ in schema_changes(things, log, lake, 9)] == [2, 3]


def test_rows_without_key_can_be_counted(log: SqliteLog, lake: Lake) -> None:
    """An update lands with the row that it replaced, unless that is one that never landed."""
    declared = source(("v", "string"))
    keyless = declared.model_copy(update={"keyless": True, "gate": Gate(event_time="id", freshness_days=1.0)})
    updates = [
        change("u", 1, 3, 1, v="b") | {"before": {"id": 1, "v": "a"}},
        change("u", 2, 3, 2, v="c") | {"before": {"id": 2, "v": 5}},
        change("u", 1, 4, v=6) | {"before": {"id": 1, "v": "b"}},
    ]
    created = [change("c", 1, 1, v="a"), change("c", 1, 2, v="a"), change("c", 2, 2, 2, v=5)]
    append(log, *({**each, "key": None} for each in (*created, *updates, updates[0], change("d", 1, 5, v="a"))))
    report = land(keyless, log, lake, 100)
    assert (report.read, report.quarantined, report.repeated) == (8, 2, 1)
    columns = ("change_op", "id", "v")
    assert sorted(landed(lake, *columns)) == sorted(
        [("c", 1, "a"), ("c", 1, "a"), ("d", 1, "a"), ("u", 1, "b"), ("u", 2, "c"), ("d", 1, "a")]
    )


def waiting(things: Source, lake: Lake) -> Counter[str]:
    """By problem."""
    return Counter(quarantine_waiting(things, lake).values())


def test_what_is_in_quarantine_waits_until_a_later_change_of_the_row_has_landed(log: SqliteLog, lake: Lake) -> None:
    things = source(("v", "int64"))
    append(log, change("c", 1, 1, v="x"), change("c", 2, 2, v="y"), {**change("c", 3, 3, v=3), "key": None})
    land(things, log, lake, 10)
    assert waiting(things, lake) == {"v: not an int64": 2, "key: null": 1}
    append(log, change("c", 4, 3, 2, v="z"), change("d", 4, 3, 3, v="z"))  # it is gone before it was mended
    land(things, log, lake, 10)
    assert waiting(things, lake) == {"v: not an int64": 2, "key: null": 1}
    append(log, change("u", 1, 4, v=1), change("r", 7, 5, v=7))  # the row, mended; and the table read again
    land(things, log, lake, 10)
    assert waiting(things, lake) == {"v: not an int64": 1}
    append(log, change("t", None, 6))
    land(things, log, lake, 10)
    assert waiting(things, lake) == {}


def test_of_a_table_without_key_it_waits_until_the_table_is_read_again(log: SqliteLog, lake: Lake) -> None:
    things = source(("v", "int64")).model_copy(update={"keyless": True})
    append(log, {**change("c", 1, 1, v="x"), "key": None})
    land(things, log, lake, 10)
    append(log, {**change("c", 1, 2, v=1), "key": None})
    land(things, log, lake, 10)
    assert waiting(things, lake) == {"v: not an int64": 1}
    append(log, {**change("r", 1, 3, order=SNAPSHOT_ORDER, v=1), "key": None})
    land(things, log, lake, 10)
    assert waiting(things, lake) == {}


def test_a_topic_that_the_group_takes_away_because_it_is_gone_is_told(
    log: SqliteLog, lake: Lake, tmp_path: Path
) -> None:
    """Also where nobody has asked for its end before it went."""
    things = source(("v", "int64"))
    append(log, change("c", 1, 1, v=1))
    land(things, log, lake, 10)
    said: list[str] = []

    def say(event: str, **more: Any) -> None:
        said.append(f"{event} {more.get('runbook', '')}")

    with SqliteLog(tmp_path / "another.db") as another:
        for held, wanted in ((log, {}), (another, {RAW})):
            lander = Lander(lambda: [things], held, lake, Options(), say)
            lander._declare([things])
            lander.revoked([TopicPartition(TOPIC, 0)])
            lander._look_at_what_left()
            assert set(lander.refused) == set(wanted)
    assert said[-1] == "refused landing_lost_log"
