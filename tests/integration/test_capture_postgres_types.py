"""Every PostgreSQL type from a column into a change: exact, or recognisably not of its type. Never changed silently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from postgres_capture import QUICK, SETTINGS, Connector, Database, capturing, same
from stack_servers import started

from headwater.stack.server import Server
from streaming.postgres.types import rows

_DAY = 86_400_000_000
# Type, the lake's type, and values: as a literal, and as the change has them.
# fmt: off
CASES: tuple[tuple[str, str, list[tuple[str, Any]]], ...] = (
    ('smallint', 'int64', [('-32768', -32768)]),
    ('integer', 'int64', [('2147483647', 2147483647)]),
    ('bigint', 'int64', [
        ('9223372036854775807', 9223372036854775807),
        ('-9223372036854775808', -9223372036854775808),
    ]),
    ('oid', 'int64', [('4294967295', 4294967295)]),
    ('real', 'float64', [('1.1', 1.1), ("'NaN'", 'NaN'), ("'-Infinity'", '-Infinity'), ('1e30', 1e+30)]),
    ('double precision', 'float64', [('0.1', 0.1), ('1e-300', 1e-300), ("'Infinity'", 'Infinity'), ('-0.5', -0.5)]),
    ('float8', 'float64', [("'-0'", -0.0), ("'0'", 0)]),
    ('numeric', 'string', [('1.50', '1.50'), ("'NaN'", 'NaN'), (f"1{'0' * 200}.5", f"1{'0' * 200}.5")]),
    ('numeric(38,18)', 'decimal(38,18)', [
        ('12345678901234567890.123456789012345678', '12345678901234567890.123456789012345678'),
        ("'NaN'", 'NaN'),
    ]),
    ('numeric(60,2)', 'string', [('1', '1.00')]),
    ('numeric(3,-2)', 'string', [('12345', '12300')]),
    ('money', 'decimal(19,2)', [("'1234567.89'::money", '1234567.89'), ("'-0.5'::money", '-0.50')]),
    ('boolean', 'bool', [('true', True), ('false', False)]),
    ('date', 'date', [
        ("'1970-01-02'", 1),
        ("'0001-01-01'", -719162),
        ("'0001-12-31 BC'", -719163),
        ("'4713-01-01 BC'", -2440550),
        ("'5874897-12-31'", 2145042905),
        ("'infinity'", 'infinity'),
    ]),
    ('time', 'time', [("'00:00:00.000001'", 1), ("'24:00'", _DAY)]),
    ('timetz', 'string', [
        ("'04:05:06.789-08'", '12:05:06.789Z'),
        ("'01:00+05:30'", '19:30:00Z'),
        ("'24:00-01'", '24:00:00-01'),
    ]),
    ('timestamp', 'timestamp', [
        ("'2011-12-09 12:50:00'", 1323435000000000),
        ("'2011-12-09 12:50:00.000001'", 1323435000000001),
        ("'2011-12-09 12:50:00.25'", 1323435000250000),
        ("'1970-01-01 00:00:00'", 0),
        ("'1970-01-01 00:00:00.000007'", 7),
        ("'1969-12-31 23:59:59.999999'", -1),
        ("'0001-01-01 00:00:00'", -62135596800000000),
        ("'0044-03-15 12:00:00 BC'", -63517780800000000),
        ("'10000-01-01 00:00:00.12345'", 253402300800123450),
        ("'294276-12-31 23:59:59.999999'", '294276-12-31 23:59:59.999999'),
        ("'infinity'", 'infinity'),
        ("'-infinity'", '-infinity'),
    ]),
    ('timestamptz', 'timestamp', [
        ("'2024-01-02 03:04:05.123456+02'", '2024-01-02T01:04:05.123456Z'),
        ("'2011-03-27 02:30:00 Europe/Berlin'", '2011-03-27T01:30:00Z'),
        ("'infinity'", 'infinity'),
        ("'0044-03-15 12:00:00+00 BC'", '0044-03-15 12:00:00+00 BC'),
        ("'10000-01-01 00:00:00+00'", '10000-01-01 00:00:00+00'),
    ]),
    ('interval', 'string', [("'1 year 2 mons -3 days 04:05:06.7'", 'P1Y2M-3DT4H5M6.7S'), ("'0'", 'P0Y0M0DT0H0M0S')]),
    ('bytea', 'binary', [("'\\x00ff10'", 'AP8Q'), ("''", '')]),
    ('bit(1)', 'bool', [("B'1'", True)]),
    ('bit(10)', 'binary', [("B'1000000001'", 'AQI=')]),
    ('bit varying(5)', 'string', [("B'001'", '001')]),
    ('json', 'json', [('\'{"a":  [1, null], "b": "\\u00e9\\n"}\'', '{"a":  [1, null], "b": "\\u00e9\\n"}')]),
    ('jsonb', 'json', [('\'{"b":2,"a":1.10}\'', '{"a": 1.10, "b": 2}')]),
    ('text', 'string', [
        ('E\'quote " back \\\\ tab \\t nl \\n é 😀 \\x01 %\'', 'quote " back \\ tab \t nl \n é 😀 \x01 %'),
        ("''", ''),
        ("'\\N'", '\\N'),
    ]),
    ('varchar(20)', 'string', [('\'100% "x"\'', '100% "x"')]),
    ('char(5)', 'string', [("'ab'", 'ab   ')]),
    ('"char"', 'string', [("'x'", 'x')]),
    ('name', 'string', [("'n'", 'n')]),
    ('uuid', 'string', [("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')]),
    ('inet', 'string', [("'10.0.0.1/8'", '10.0.0.1/8')]),
    ('cidr', 'string', [("'10.0.0.0/8'", '10.0.0.0/8')]),
    ('macaddr', 'string', [("'08:00:2b:01:02:03'", '08:00:2b:01:02:03')]),
    ('macaddr8', 'string', [("'08:00:2b:01:02:03:04:05'", '08:00:2b:01:02:03:04:05')]),
    ('pg_lsn', 'string', [("'16/B374D848'", '16/B374D848')]),
    ('xml', 'string', [('\'<a b="c"/>\'', '<a b="c"/>')]),
    ('tsvector', 'string', [("'a fat cat'", "'a' 'cat' 'fat'")]),
    ('tsquery', 'string', [("'fat & cat'", "'fat' & 'cat'")]),
    ('jsonpath', 'string', [("'$.a'", '$."a"')]),
    ('point', 'string', [("'(1,2.5)'", '(1,2.5)')]),
    ('box', 'string', [("'(1,2),(0,0)'", '(1,2),(0,0)')]),
    ('int4range', 'string', [("'[1,5)'", '[1,5)'), ("'empty'", 'empty')]),
    ('tstzrange', 'string', [("'[2024-01-01 00:00+00,)'", '["2024-01-01 00:00:00+00",)')]),
    ('int4multirange', 'string', [("'{[1,2),[5,7)}'", '{[1,2),[5,7)}')]),
    ('regclass', 'string', [("'pg_class'", 'pg_class')]),
    ('integer[]', 'list<int64>', [
        ("'{1,NULL,3}'", [1, None, 3]),
        ("'{}'", []),
        ("'{{1,2},{3,4}}'", [[1, 2], [3, 4]]),
        ("'[0:1]={1,2}'", '[0:1]={1,2}'),
    ]),
    ('text[]', 'list<string>', [
        ("ARRAY['a,b', 'q\"q', 'b\\b', NULL, 'NULL']", ["a,b", 'q"q', "b\\b", None, "NULL"]),
        ("ARRAY['', '{}', 'é']", ["", "{}", "é"]),
    ]),
    ('timestamp[]', 'list<timestamp>', [("ARRAY['1970-01-01 00:00:01'::timestamp]", [1000000])]),
    ('numeric(10,2)[]', 'list<decimal(10,2)>', [("'{1.5}'", ['1.50'])]),
    ('boolean[]', 'list<bool>', [("'{t,f}'", [True, False])]),
    ('bytea[]', 'list<binary>', [("ARRAY['\\xff'::bytea]", ['/w=='])]),
    ('box[]', 'list<string>', [("ARRAY['(1,1),(0,0)'::box, '(2,2),(0,0)'::box]", ['(1,1),(0,0)', '(2,2),(0,0)'])]),
    ('public.mood', 'string', [("'so so'", 'so so')]),
    ('public.mood[]', 'list<string>', [("ARRAY['so so', 'ok']::public.mood[]", ['so so', 'ok'])]),
    ('public.price', 'decimal(10,2)', [("'3.1'", '3.10')]),
    ('public.prices', 'list<decimal(10,2)>', [('ARRAY[3.1, 4]', ['3.10', '4.00'])]),
    ('public.pair', 'string', [("ROW(1, 'a b')", '(1,"a b")')]),
    ('public.floats', 'string', [("'[1.5,2.5]'", '[1.5,2.5]')]),
    ('public.citext', 'string', [("'MiXed'", 'MiXed')]),
    ('public.hstore', 'string', [("'a=>1'", '"a"=>"1"')]),
    ('public.ltree', 'string', [("'Top.Science'", 'Top.Science')]),
)
# fmt: on
TYPES = (
    "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree",
    "CREATE TYPE mood AS ENUM ('so so', 'ok')",
    "CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE > 0); CREATE DOMAIN prices AS numeric(10,2)[]",
    "CREATE TYPE pair AS (a int, b text); CREATE TYPE floats AS RANGE (subtype = float8)",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("postgresql", tmp_path_factory.mktemp("postgresql"), settings=SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def captured(server: Server) -> Connector:
    """A table with a column of each type: rows that were there before, the same rows streamed, and rows of nulls."""
    with Database(server, "types") as db:
        for statement in TYPES:
            db(statement)
        columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(CASES))
        for table in ("before", "streamed"):
            db(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})")
        _fill(db, "before")
        with capturing(db, "before", "streamed") as connector:
            connector.caught_up()
            _fill(db, "streamed")
            connector.caught_up()
        with capturing(db, "before", "streamed", log=connector.log) as connector:
            connector.caught_up()
    return connector


def _fill(db: Database, table: str) -> None:
    db(f"INSERT INTO {table} (id) VALUES (-1)")
    for n in range(max(len(values) for _, _, values in CASES)):
        given = {f"c{i}": values[n % len(values)][0] for i, (_, _, values) in enumerate(CASES)}
        db(f"INSERT INTO {table} (id, {', '.join(given)}) VALUES ({n}, {', '.join(given.values())})")


@pytest.mark.parametrize("number", range(len(CASES)), ids=[kind for kind, _, _ in CASES])
@pytest.mark.parametrize("table", ["before", "streamed"])
def test_values_arrive_exactly(captured: Connector, table: str, number: int) -> None:
    _, lake, values = CASES[number]
    found = {row["id"]: row[f"c{number}"] for row in captured.fold(table)}
    assert found[-1] is None
    for n, (_, wanted) in enumerate(values):
        assert repr(found[n]) == repr(wanted)
    assert _schema(captured, table)[f"c{number}"]["lake_type"] == lake


def _schema(connector: Connector, table: str) -> dict[str, Any]:
    record = connector.log[f"capture.{connector.system}.schemas", 0]
    found = next(body for one in record if (body := json.loads(one.value or b""))["table"] == table)
    return {column["name"]: column for column in found["columns"]}


def test_the_stream_the_catalog_and_the_snapshot_say_the_same_of_every_column(captured: Connector) -> None:
    """Else each restart would record other versions of the schema."""
    for table in ("before", "streamed"):
        assert [version["changed"] for version in captured.schemas(table)] == [["first seen"]]


def test_the_stream_and_the_snapshot_write_the_same_bytes(captured: Connector) -> None:
    assert same(captured.fold("before"), captured.fold("streamed"))
    rows_of = [
        sorted(
            (record.key, (record.value or b"").split(b'"after":')[1].split(b',"source":')[0])
            for (topic, _), kept in captured.log.items()
            if topic == captured.topic(table)
            for record in kept
        )
        for table in ("before", "streamed")
    ]
    assert rows_of[0] == rows_of[1]


def test_an_enums_new_value_and_a_type_made_meanwhile_arrive(server: Server) -> None:
    with Database(server, "enums") as db:
        db("CREATE TYPE mood AS ENUM ('bad'); CREATE TABLE t (id int PRIMARY KEY, m mood)")
        with capturing(db, "t") as connector:
            connector.caught_up()
            db("ALTER TYPE mood ADD VALUE 'good'")
            db("INSERT INTO t VALUES (1, 'good')")
            db("CREATE TYPE colour AS ENUM ('red'); ALTER TABLE t ADD c colour[] DEFAULT '{red}'")
            db("INSERT INTO t VALUES (2, 'bad')")
            connector.caught_up()
    assert same(connector.fold("t"), [{"id": 1, "m": "good"}, {"id": 2, "m": "bad", "c": ["red"]}])


def test_text_that_is_not_utf8_is_given_as_bytes(server: Server) -> None:
    ascii_only = "TEMPLATE template0 ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C'"
    with Database(server, "ascii", ascii_only) as db:
        db("CREATE TABLE t (id text PRIMARY KEY, v text[])")
        for n in ("41", "42", "43"):
            db(_odd(n))
        with capturing(db, "t", options=replace(QUICK, chunk_rows=1)) as connector:
            connector.caught_up()
            db(_odd("44"))
            db("INSERT INTO t VALUES ('plain', '{é}')")
            connector.caught_up()
    found = {json.dumps(row["id"]): row["v"] for row in connector.fold("t")}
    odd = {f'{{"bytes": "{key}"}}': ["ok", {"bytes": "6Q=="}] for key in ("/0E=", "/0I=", "/0M=", "/0Q=")}
    assert found == {**odd, '"plain"': ["é"]}


def _odd(n: str) -> str:
    key, value = (f"convert_from('\\x{digits}', 'SQL_ASCII')" for digits in (f"ff{n}", "e9"))
    return f"INSERT INTO t VALUES ({key}, ARRAY['ok', {value}])"


def test_every_type_of_the_server_is_documented(server: Server) -> None:
    """No built-in type is left to chance: it has a row of its own, or is of a kind that has."""
    with Database(server, "catalog") as db:
        names = db(
            "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' "
            "AND typcategory <> 'A' AND (typname NOT LIKE 'pg\\_%' OR typname IN ('pg_lsn', 'pg_snapshot'))"
        )
    documented = {row.type for row in rows()}
    assert {name for (name,) in names} - documented == {"gtsvector"}  # has no output of its own
