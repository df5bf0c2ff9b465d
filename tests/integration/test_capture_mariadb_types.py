"""Every column type of MariaDB, with values at its edges: exact, and the same JSON from snapshot and stream."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from mariadb_capture import FAST, Shop, capture_once, fresh_database, topic
from memory_writer import Log, changes, fold
from stack_servers import started

from headwater.stack.server import Server
from streaming.mysql.types import parse_type


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("mariadb", tmp_path_factory.mktemp("mariadb") / "server") as running:
        yield running


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wkb_point(x: float, y: float) -> bytes:
    return b"\x01\x01\0\0\0" + struct.pack("<dd", x, y)


_LONG = "ü€😀" * 3000
# Type, SQL of a value, the JSON that it becomes.
CASES: list[tuple[str, str, Any]] = [
    ("tinyint", "-128", -128),
    ("tinyint", "127", 127),
    ("tinyint(1)", "1", 1),
    ("tinyint unsigned", "255", 255),
    ("smallint", "-32768", -32768),
    ("smallint unsigned", "65535", 65535),
    ("mediumint", "-8388608", -8388608),
    ("mediumint", "8388607", 8388607),
    ("mediumint unsigned", "16777215", 16777215),
    ("int", "-2147483648", -(2**31)),
    ("int unsigned", "4294967295", 2**32 - 1),
    ("int(6) zerofill", "42", 42),
    ("bigint", "-9223372036854775808", -(2**63)),
    ("bigint unsigned", "18446744073709551615", 2**64 - 1),
    ("bool", "true", 1),
    ("decimal(10,2)", "12.5", "12.50"),
    ("decimal(10,2)", "-0.01", "-0.01"),
    ("decimal(65,30)", "-" + "9" * 35 + "." + "9" * 30, "-" + "9" * 35 + "." + "9" * 30),
    ("decimal(65,0)", "9" * 65, "9" * 65),
    ("decimal(38,38)", "0." + "0" * 37 + "1", "0." + "0" * 37 + "1"),
    ("decimal(9,9)", "-0.123456789", "-0.123456789"),
    ("decimal(18,9)", "123456789.987654321", "123456789.987654321"),
    ("decimal(8,2) unsigned zerofill", "3.5", "3.50"),
    ("decimal(8,2) zerofill", "0", "0.00"),
    ("float", "0.1", 0.1),
    ("float", "16777217", 16777216.0),
    ("float", "3.4028234e38", 3.4028235e38),
    ("float", "-1.17549435e-38", -1.1754944e-38),
    ("float", "1e-45", 1e-45),
    ("float(7,4)", "999.00009", 999.0001),
    ("float unsigned", "7.5", 7.5),
    ("double", "0.1", 0.1),
    ("double", "1.7976931348623157e308", 1.7976931348623157e308),
    ("double", "-2.2250738585072014e-308", -2.2250738585072014e-308),
    ("double(10,2)", "12.345", 12.35),
    ("double unsigned", "3", 3.0),
    ("bit(1)", "b'1'", True),
    ("bit(1)", "b'0'", False),
    ("bit(5)", "b'10011'", b64(b"\x13")),
    ("bit(12)", "b'100000000001'", b64(b"\x01\x08")),
    ("bit(64)", "0xFEDCBA9876543210", b64(bytes.fromhex("1032547698badcfe"))),
    ("date", "'1970-01-01'", 0),
    ("date", "'0001-01-01'", -719162),
    ("date", "'9999-12-31'", 2932896),
    ("date", "'0000-00-00'", "0000-00-00"),
    ("date", "'2024-02-00'", "2024-02-00"),
    ("date", "'0000-01-01'", "0000-01-01"),
    ("datetime", "'2024-02-29 23:59:59'", 1709251199000000),
    ("datetime(6)", "'9999-12-31 23:59:59.999999'", 253402300799999999),
    ("datetime(6)", "'0001-01-01 00:00:00.000001'", -62135596799999999),
    ("datetime(1)", "'2024-01-01 00:00:00.9'", 1704067200900000),
    ("datetime(2)", "'2024-01-01 00:00:00.09'", 1704067200090000),
    ("datetime(3)", "'2024-01-01 00:00:00.123'", 1704067200123000),
    ("datetime(4)", "'2024-01-01 00:00:00.1234'", 1704067200123400),
    ("datetime(5)", "'2024-01-01 00:00:00.12345'", 1704067200123450),
    ("datetime(3)", "'0000-00-00 00:00:00'", "0000-00-00 00:00:00.000"),
    ("datetime", "'0000-00-00 00:00:00'", "0000-00-00 00:00:00"),
    ("timestamp null", "'2024-01-02 03:04:05'", "2024-01-02T03:04:05Z"),
    ("timestamp(6) null", "'2038-01-19 03:14:07.999999'", "2038-01-19T03:14:07.999999Z"),
    ("timestamp(3) null", "'1970-01-01 00:00:01.001'", "1970-01-01T00:00:01.001Z"),
    ("timestamp null", "'0000-00-00 00:00:00'", "0000-00-00 00:00:00"),
    ("timestamp(2) null", "'0000-00-00 00:00:00'", "0000-00-00 00:00:00.00"),
    ("time", "'838:59:59'", 3020399000000),
    ("time(6)", "'-838:59:59.999999'", -3020399999999),
    ("time(6)", "'-00:00:00.000001'", -1),
    ("time(3)", "'-00:00:01.500'", -1500000),
    ("time(1)", "'12:34:56.7'", 45296700000),
    ("time(2)", "'-12:34:56.78'", -45296780000),
    ("time(4)", "'00:00:00.0001'", 100),
    ("time(5)", "'-00:00:59.99999'", -59999990),
    ("year", "2155", 2155),
    ("year", "0", 0),
    ("char(10)", "'ab  '", "ab"),
    ("char(255)", "repeat('ü', 255)", "ü" * 255),
    ("varchar(10)", "'ab  '", "ab  "),
    ("varchar(100)", "'\"\\\\\\n\\0\\Z%s\x7f€😀'", '"\\\n\0\x1a%s\x7f€😀'),
    ("varchar(3000)", "repeat('€', 3000)", "€" * 3000),
    ("varchar(20) character set latin1", "'äöü€'", "äöü€"),
    ("varchar(20) character set latin1", "_binary x'818d8f909d'", "\x81\x8d\x8f\x90\x9d"),
    ("varchar(20) character set ascii", "'plain'", "plain"),
    ("varchar(20) character set cp1251", "'Привет'", "Привет"),
    ("varchar(20) character set koi8r", "'Привет'", "Привет"),
    ("varchar(20) character set greek", "'αβγ'", "αβγ"),
    ("varchar(20) character set utf8mb3", "'ü€'", "ü€"),
    ("varchar(20) character set ucs2", "'ü€'", "ü€"),
    ("varchar(20) character set utf16", "'ü€😀'", "ü€😀"),
    ("varchar(20) character set utf16le", "'ü€😀'", "ü€😀"),
    ("varchar(20) character set utf32", "'ü€😀'", "ü€😀"),
    ("varchar(20) character set gbk", "'中文'", "中文"),
    ("varchar(20) character set big5", "'中文'", "中文"),
    ("varchar(20) character set sjis", "'日本'", "日本"),
    ("varchar(20) character set ujis", "'日本'", "日本"),
    ("varchar(20) character set eucjpms", "'日本'", "日本"),
    ("varchar(20) character set euckr", "'한국'", "한국"),
    ("varchar(20) collate utf8mb4_uca1400_as_cs", "'é'", "é"),
    ("tinytext", "'t'", "t"),
    ("text", f"'{_LONG}'", _LONG),
    ("text character set latin1", "'äöü'", "äöü"),
    ("mediumtext", "repeat('x', 70000)", "x" * 70000),
    ("longtext", "repeat('y', 70001)", "y" * 70001),
    ("json", '\'{"a": [1, "ü"]}\'', '{"a": [1, "ü"]}'),
    ("binary(4)", "x'01020000'", b64(b"\x01\x02\0\0")),
    ("binary(4)", "x'00000000'", b64(bytes(4))),
    ("binary(16)", "x'01'", b64(b"\x01" + bytes(15))),
    ("varbinary(10)", "x'00ff00'", b64(b"\0\xff\0")),
    ("tinyblob", "x'00'", b64(b"\0")),
    ("blob", "repeat(x'ff', 300)", b64(b"\xff" * 300)),
    ("mediumblob", "''", ""),
    ("longblob", "repeat(x'00', 100000)", b64(bytes(100000))),
    ("enum('a','b''c','ü,')", "'b''c'", "b'c"),
    ("enum('a','b''c','ü,')", "'ü,'", "ü,"),
    ("enum('a','b') character set latin1", "'nonsense'", ""),
    ("set('x','ü','z')", "'x,z'", "x,z"),
    ("set('x','ü','z')", "''", ""),
    ("set('x','ü','z') character set latin1", "'ü'", "ü"),
    ("set(" + ",".join(f"'m{n}'" for n in range(64)) + ")", "'m0,m63'", "m0,m63"),
    ("uuid", "'123e4567-e89b-12d3-a456-426614174000'", "123e4567-e89b-12d3-a456-426614174000"),
    ("uuid", "'00000000-0000-0000-0000-000000000000'", "00000000-0000-0000-0000-000000000000"),
    ("uuid", "'ffffffff-ffff-7fff-8fff-ffffffffff00'", "ffffffff-ffff-7fff-8fff-ffffffffff00"),
    ("inet6", "'::'", "::"),
    ("inet6", "'2001:db8::1:0:0:1'", "2001:db8::1:0:0:1"),
    ("inet6", "'::ffff:1.2.3.4'", "::ffff:1.2.3.4"),
    ("inet4", "'1.2.3.0'", "1.2.3.0"),
    ("point", "point(1.5, -2)", {"x": 1.5, "y": -2.0, "wkb": b64(wkb_point(1.5, -2)), "srid": None}),
    (
        "point",
        "st_geomfromtext('POINT(1 2)', 4326)",
        {"x": 1.0, "y": 2.0, "wkb": b64(wkb_point(1, 2)), "srid": 4326},
    ),
    (
        "geometry",
        "st_geomfromtext('LINESTRING(0 0, 1 1)')",
        {"wkb": b64(b"\x01\x02\0\0\0\x02\0\0\0" + struct.pack("<4d", 0, 0, 1, 1)), "srid": None},
    ),
    ("varchar(300) compressed", "repeat('ü', 300)", "ü" * 300),
    ("varchar(300) compressed", "'short'", "short"),
    ("text compressed", "repeat('c', 40000)", "c" * 40000),
    ("blob compressed", "repeat(x'0a', 40000)", b64(b"\n" * 40000)),
    ("blob compressed", "''", ""),
]  # fmt: skip


def test_every_type_is_exact_and_the_same_from_snapshot_and_stream(server: Server) -> None:
    """One wide table, filled before the capture and again while it streams; each value alone in a row, too."""
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(CASES))
    values = ", ".join(sql for _, sql, _ in CASES)
    names = ", ".join(f"c{n}" for n in range(len(CASES)))
    log: Log = {}
    with Shop(server) as shop:
        shop.run("SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES'")
        fresh_database(shop, [f"CREATE TABLE wide (id int PRIMARY KEY, {columns}) ROW_FORMAT = DYNAMIC"])
        shop.run(f"INSERT INTO wide (id, {names}) VALUES (1, {values})", "INSERT INTO wide (id) VALUES (2)")
        capture_once(server, log, "wide")
        shop.run(f"INSERT INTO wide (id, {names}) VALUES (3, {values})", "INSERT INTO wide (id) VALUES (4)")
        for n, (_, sql, _) in enumerate(CASES):
            shop.run(f"UPDATE wide SET c{n} = {sql} WHERE id = 4")
        shop.run("UPDATE wide SET id = 5 WHERE id = 1")
        capture_once(server, log, "wide")
    rows = fold(log, topic("shop.wide"))
    expected = {f"c{n}": value for n, (_, _, value) in enumerate(CASES)}
    for key in (3, 4, 5):
        found = rows[b'{"id":%d}' % key]
        wrong = [(CASES[n][:2], found[f"c{n}"]) for n in range(len(CASES)) if found[f"c{n}"] != expected[f"c{n}"]]
        assert not wrong
    assert rows[b'{"id":2}'] == {"id": 2, **dict.fromkeys(expected)}
    read = [change["after"] for _, _, change in changes(log, topic("shop.wide")) if change["op"] == "r"]
    assert json.dumps(next(r for r in read if r["id"] == 1) | {"id": 3}) == json.dumps(rows[b'{"id":3}'])


def test_the_log_and_the_dictionary_say_the_same_of_every_column(server: Server) -> None:
    """Else each restart would record another version of the schema."""
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(CASES))
    log: Log = {}
    with Shop(server) as shop:
        # A unique key that is too long is kept as a hash, in a column that the log has and the dictionary has not.
        hashed = "id int PRIMARY KEY, v text, w text, UNIQUE (v), UNIQUE (w)"
        made = {
            "wide": f"id int PRIMARY KEY, {columns}, CHECK (id > 0)",
            "hashed": hashed,
            "like_it": f"{hashed}, DB_ROW_HASH_1 bigint unsigned",
        }
        fresh_database(shop, [f"CREATE TABLE {name} ({what})" for name, what in made.items()])
        capture_once(server, log, *made)
        for number in (1, 2):
            shop.run(*(f"INSERT INTO {name} (id) VALUES ({number})" for name in made))
            capture_once(server, log, *made)
        shop.run("INSERT INTO hashed VALUES (3, 'a', 'b')", "INSERT INTO like_it VALUES (3, 'a', 'b', 4)")
        capture_once(server, log, *made)
        words = shop.run(
            "SELECT COLUMN_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'shop' AND TABLE_NAME = 'wide' "
            "ORDER BY ORDINAL_POSITION"
        )
    recorded = [json.loads(record.value or b"") for record in log[("capture.shop.schemas", 0)]]
    versions = [found for found in recorded if found["table"] == "wide"]
    assert len(recorded) == len(made)
    assert fold(log, topic("shop.hashed"))[b'{"id":3}'] == {"id": 3, "v": "a", "w": "b"}
    assert fold(log, topic("shop.like_it"))[b'{"id":3}'] == {"id": 3, "v": "a", "w": "b", "DB_ROW_HASH_1": 4}
    assert [column["type"] for column in versions[0]["columns"]] == [str(parse_type(word)) for (word,) in words]


KEYS: list[tuple[str, list[str]]] = [
    ("tinyint", ["-128", "-1", "0", "127"]),
    ("bigint unsigned", ["0", "1", "9223372036854775808", "18446744073709551615"]),
    ("decimal(20,4)", ["-5.5", "-0.0001", "0", "12345678.9"]),
    ("double", ["-1e300", "-0.5", "0.1", "1e300"]),
    ("float", ["-3e38", "0.1", "0.2", "16777216"]),
    ("date", ["'0000-00-00'", "'1969-12-31'", "'1970-01-01'", "'9999-12-31'"]),
    ("datetime(6)", ["'1000-01-01'", "'2024-01-01 00:00:00.000001'", "'2024-01-01 00:00:00.000002'"]),
    ("timestamp(3)", ["'1970-01-01 00:00:01'", "'2024-01-01 00:00:00.001'", "'2024-01-01 00:00:00.002'"]),
    ("time(3)", ["'-838:59:59'", "'-00:00:00.001'", "'00:00:00'", "'838:59:59'"]),
    ("year", ["1901", "1970", "2155"]),
    ("bit(10)", ["b'0'", "b'1'", "b'1000000000'", "b'1111111111'"]),
    ("enum('z','a','m')", ["'z'", "'a'", "'m'"]),
    ("set('z','a','m')", ["''", "'z'", "'a'", "'m'", "'z,m'"]),
    ("char(8)", ["''", "'a'", "'B'", "'c'"]),
    ("varchar(40) collate utf8mb4_general_ci", ["'a'", "'B'", "'Ö '", "'Z'", "'z '''"]),
    ("varchar(40) collate utf8mb4_nopad_bin", ["'a'", "'A'", "'a '", "'ä'", "'😀'", "'\\\\'", "'\"'"]),
    ("varchar(40) character set latin1 collate latin1_german2_ci", ["'a'", "'ae1'", "'ä2'", "'ß'", "'ü'", "'z'"]),
    ("varchar(40) character set gbk", ["'a'", "'中'", "'文'"]),
    ("varchar(40) collate utf8mb4_uca1400_ai_ci", ["'a'", "'B'", "'ö'", "'z'"]),
    ("binary(3)", ["x'000000'", "x'000001'", "x'010000'", "x'ff0000'"]),
    ("varbinary(5)", ["x''", "x'00'", "x'0000'", "x'ff'"]),
    ("uuid", ["'123e4567-e89b-12d3-a456-426614174000'", "'023e4567-e89b-72d3-a456-426614174000'", "uuid()"]),
    ("inet6", ["'::'", "'::1'", "'::ffff:1.2.3.4'", "'2001:db8::'"]),
    ("inet4", ["'0.0.0.0'", "'1.2.3.4'", "'255.255.255.255'"]),
]


@pytest.mark.parametrize(("kind", "values"), KEYS, ids=[kind for kind, _ in KEYS])
def test_a_key_of_any_type_is_read_in_chunks_once_and_is_the_streams_key(
    server: Server, kind: str, values: list[str]
) -> None:
    log: Log = {}
    with Shop(server) as shop:
        shop.run("SET time_zone = '+00:00', sql_mode = ''")
        fresh_database(shop, [f"CREATE TABLE t (k {kind}, v int, PRIMARY KEY (k))"])
        for number, value in enumerate(random.Random(7).sample(values, len(values))):
            shop.run(f"INSERT INTO t VALUES ({value}, {number})")
        capture_once(server, log, "t", options=_chunks_of(1))
        read = [(key, change["after"]) for _, key, change in changes(log, topic("shop.t"))]
        assert len(read) == len(values)
        shop.run("UPDATE t SET v = v + 100")
        capture_once(server, log, "t")
    updated = [(key, change["after"]) for _, key, change in changes(log, topic("shop.t")) if change["op"] == "u"]
    assert sorted(updated, key=lambda row: row[0] or b"") == sorted(
        ((key, {**row, "v": row["v"] + 100}) for key, row in read), key=lambda row: row[0] or b""
    )


def test_a_composite_key_is_read_once_in_chunks_of_any_size(server: Server) -> None:
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(
            shop,
            [
                "CREATE TABLE t (v int, b varchar(10) COLLATE utf8mb4_general_ci, a enum('y','x'), c int, "
                "PRIMARY KEY (a, b, c))",
                "INSERT INTO t SELECT seq, char(97 + seq % 5), elt(1 + seq % 2, 'x', 'y'), seq DIV 10 "
                "FROM seq_0_to_199",
            ],
        )
        capture_once(server, log, "t", options=_chunks_of(7))
        rows = {(v, b, a, c) for v, b, a, c in shop.run("SELECT v, b, a, c FROM t")}
    read = [change["after"] for _, _, change in changes(log, topic("shop.t"))]
    assert len(read) == len(rows)
    assert {(row["v"], row["b"], row["a"], row["c"]) for row in read} == rows


def test_text_that_is_not_valid_is_never_changed(server: Server) -> None:
    """It is there as bytes, in a form that no text column takes."""
    log: Log = {}
    with Shop(server) as shop:
        fresh_database(
            shop,
            [
                "CREATE TABLE t (id int PRIMARY KEY, raw varbinary(20))",
                "INSERT INTO t VALUES (1, x'61ff62'), (2, 'fine')",
                "ALTER TABLE t MODIFY raw varbinary(20), ADD v varchar(20) CHARACTER SET swe7",
                "UPDATE t SET v = _swe7 x'6180' WHERE id = 1",
            ],
        )
        capture_once(server, log, "t")
        shop.run("UPDATE t SET id = 3 WHERE id = 1")
        capture_once(server, log, "t")
    found = fold(log, topic("shop.t"))[b'{"id":3}']
    assert found["v"] == {"invalid": b64(b"a\x80")}


def _chunks_of(rows: int) -> Any:
    from dataclasses import replace

    return replace(FAST, chunk_rows=rows)
