"""What is written to the databases so that two connectors can be compared: values of every type, and every operation.

A case is one value of one column; each is written twice, before the connectors start (they read it in a snapshot) and
while they stream. What a case or a statement is there for is said where `differences` explains what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WORKLOADS", "Case", "Operations", "Workload"]

TYPES = "types"


@dataclass(frozen=True)
class Case:
    """A value as SQL; `at_rest`: also read in a snapshot (some values stop Debezium there)."""

    type: str
    sql: str
    at_rest: bool = True


@dataclass(frozen=True)
class Operations:
    """Tables with their partitions, statements that make and fill them, transactions that then change them."""

    tables: Mapping[str, int]
    before: Sequence[str]
    transactions: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Workload:
    """All that one database is given."""

    database: str
    before: Sequence[str]
    cases: Sequence[Case]
    operations: Operations

    def columns(self) -> dict[str, str]:
        """A column of the table of types for each type: its name by the type."""
        return {each: f"c{number}" for number, each in enumerate(dict.fromkeys(case.type for case in self.cases))}

    def statements(self, first_id: int, *, at_rest: bool) -> Iterator[tuple[int, Case, str]]:
        """An INSERT for each case, with the id of its row."""
        columns = self.columns()
        for number, case in enumerate(self.cases):
            if case.at_rest or not at_rest:
                cast = f"CAST({case.sql} AS {case.type})" if self.database == "PostgreSQL" else case.sql
                row = first_id + number
                yield row, case, f"INSERT INTO {TYPES} (id, {columns[case.type]}) VALUES ({row}, {cast})"

    def create_types(self) -> str:
        """The table of types."""
        columns = "".join(f", {name} {each}" for each, name in self.columns().items())
        return f"CREATE TABLE {TYPES} (id integer PRIMARY KEY{columns})"


def _cases(values: Mapping[str, Sequence[str]], not_at_rest: Sequence[tuple[str, str]] = ()) -> tuple[Case, ...]:
    return tuple(Case(each, sql, (each, sql) not in not_at_rest) for each, sqls in values.items() for sql in sqls)


_TEXT = "é€😀 ''q'' \"\\ / tab\t line\n bell\x07"
_DATES = ("'2024-01-02'", "'1970-01-01'", "'1000-01-01'", "'9999-12-31'")
_BIG = "repeat('0123456789abcdef', 2000)"
# fmt: off
_POSTGRESQL: Mapping[str, Sequence[str]] = {
    "smallint": ("-32768", "32767"),
    "integer": ("-2147483648", "0"),
    "bigint": ("-9223372036854775808", "9223372036854775807"),
    "oid": ("4294967295",),
    "real": ("1.5", "0.1", "16777216", "1e10", "3.4028235e38", "1e-45", "'NaN'", "'Infinity'", "'-Infinity'"),
    "double precision": ("0.1", "100", "1e22", "1.7976931348623157e308", "5e-324", "'-0'", "'NaN'", "'Infinity'",
                         "'-Infinity'"),
    "numeric": ("12.50", "0", "-1e-30", "1e20", "123456789012345678901234567890.123456789", "'NaN'", "'Infinity'",
                "'-Infinity'"),
    "numeric(12,2)": ("12.5", "0", "-1", "'NaN'"),
    "numeric(38,18)": ("12345678901234567890.123456789012345678", "1"),
    "numeric(5,0)": ("7",),
    "numeric(3,-2)": ("12300",),
    "numeric(3,5)": ("0.00123",),
    "money": ("'12.34'", "'-92233720368547758.08'"),
    "boolean": ("true", "false"),
    "char(5)": ("'ab'",),
    "varchar(10)": ("'ab '", "''"),
    "text": (f"'{_TEXT}'", "''", "chr(127) || chr(8232)"),
    "name": ("'nm'",),
    '"char"': ("'c'",),
    "citext": ("'AbC'",),
    "bytea": (r"'\x00ff10'", "''"),
    "date": (*_DATES, "'0001-01-01'", "'1582-10-10'", "'0044-03-15 BC'", "'5874897-12-31'", "'infinity'",
             "'-infinity'"),
    "time": ("'12:34:56.123456'", "'00:00:00'", "'24:00:00'"),
    "time(3)": ("'12:34:56.120'",),
    "timetz": ("'12:34:56.123456+02'", "'12:34:56.5+00'", "'12:34:56+05:30'", "'00:00:00-15:59'", "'24:00:00+00'"),
    "timetz(3)": ("'12:34:56.120+02'",),
    "timestamp": ("'2024-01-02 03:04:05.123456'", "'2024-01-02 03:04:05'", "'1969-12-31 23:59:59.999999'",
                  "'9999-12-31 23:59:59.999999'", "'0001-01-01 00:00:00'", "'1582-10-10 00:00:00'",
                  "'0044-03-15 12:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'infinity'", "'-infinity'"),
    "timestamp(3)": ("'2024-01-02 03:04:05.120'",),
    "timestamp(0)": ("'2024-01-02 03:04:05'",),
    "timestamptz": ("'2024-01-02 03:04:05.123456+02'", "'2024-01-02 03:04:05+00'", "'2024-01-02 03:04:05.120+00'",
                    "'2024-01-02 03:04:00+00'", "'9999-12-31 23:59:59.999999+00'", "'0001-01-01 00:00:00+00'",
                    "'10000-01-01 00:00:00+00'", "'0044-03-15 12:00:00+00 BC'", "'infinity'", "'-infinity'"),
    "timestamptz(3)": ("'2024-01-02 03:04:05.120+02'", "'2024-01-02 03:04:05+00'"),
    "timestamptz(0)": ("'2024-01-02 03:04:05+02'",),
    "interval": ("'1 year 2 months 3 days 04:05:06.789'", "'-1 day'", "'00:00:00.000001'", "'0'"),
    "uuid": ("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",),
    "json": ("'{\"b\": 1,  \"a\":1.50}'", "'null'"),
    "jsonb": ("'{\"b\": 1,  \"a\":1.50}'", "'null'", "'\"x\"'"),
    "xml": ("'<a>1</a>'",),
    "bit(1)": ("B'1'", "B'0'"),
    "bit(5)": ("B'10110'",),
    "bit(12)": ("B'101101110001'",),
    "varbit(10)": ("B'00101'", "B''"),
    "inet": ("'192.168.0.1/24'", "'::1'"),
    "cidr": ("'192.168.0.0/24'",),
    "macaddr": ("'08:00:2b:01:02:03'",),
    "macaddr8": ("'08:00:2b:01:02:03:04:05'",),
    "point": ("'(1,2.5)'",),
    "line": ("'{1,2,3}'",),
    "lseg": ("'[(1,2),(3,4)]'",),
    "box": ("'(3,4),(1,2)'",),
    "path": ("'[(1,2),(3,4)]'",),
    "polygon": ("'((1,2),(3,4),(5,6))'",),
    "circle": ("'<(1,2),3>'",),
    "tsvector": ("'a fat cat'",),
    "tsquery": ("'fat & rat'",),
    "int4range": ("'[1,5)'", "'empty'"),
    "int8range": ("'[1,5]'",),
    "numrange": ("'(1.5,2.5]'",),
    "tsrange": ("'[2024-01-01,2024-02-01 10:00)'",),
    "tstzrange": ("'[2024-01-01 00:00+00,)'",),
    "daterange": ("'[2024-01-01,2024-02-01)'",),
    "int4multirange": ("'{[1,5),[7,9)}'",),
    "pg_lsn": ("'16/B374D848'",),
    "hstore": ("'a=>1, b=>NULL'",),
    "ltree": ("'Top.Science'",),
    "mood": ("'sad'",),
    "small_number": ("7",),
    "price": ("1.5",),
    "pair": ("ROW(1,'x')",),
    "integer[]": ("'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'"),
    "text[]": ("'{a,\"b c\",NULL,\"q\\\"x\",\"NULL\"}'",),
    "numeric(12,2)[]": ("'{1.5,2}'",),
    "numeric[]": ("'{1.5,NaN}'",),
    "double precision[]": ("'{1.5,NaN}'",),
    "boolean[]": ("'{t,f}'",),
    "date[]": ("'{2024-01-02}'",),
    "timestamp[]": ("'{2024-01-02 03:04:05.5}'",),
    "timestamptz[]": ("'{2024-01-02 03:04:05.5+00}'",),
    "time[]": ("'{12:34:56.5}'",),
    "timetz[]": ("'{12:34:56+02}'",),
    "uuid[]": ("'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'",),
    "bytea[]": (r"ARRAY['\x00ff'::bytea]",),
    "jsonb[]": ("ARRAY['{\"a\":1}'::jsonb]",),
    "char(3)[]": ("'{ab}'",),
    "inet[]": ("'{1.2.3.4}'",),
    "mood[]": ("'{sad,ok}'",),
    "int4range[]": ("'{\"[1,3)\"}'",),
    "bit(3)[]": ("'{101}'",),
    "money[]": ("'{1.5}'",),
    "interval[]": ("'{1 day}'",),
    "small_number[]": ("'{1}'",),
}
_MARIADB: Mapping[str, Sequence[str]] = {
    "tinyint": ("-128", "127"),
    "tinyint(1)": ("0", "1", "5"),
    "tinyint unsigned": ("255",),
    "smallint": ("-32768",),
    "smallint unsigned": ("65535",),
    "mediumint": ("-8388608",),
    "mediumint unsigned": ("16777215",),
    "int": ("-2147483648",),
    "int unsigned": ("4294967295",),
    "int(5) zerofill": ("42",),
    "bigint": ("-9223372036854775808", "9223372036854775807"),
    "bigint unsigned": ("18446744073709551615", "9223372036854775807"),
    "year": ("2024", "1901", "0"),
    "float": ("1.5", "0.1", "16777216", "1e10", "3.4e38"),
    "float(7,4)": ("1.5",),
    "double": ("0.1", "100", "1e22", "1.7976931348623157e308", "-0e0"),
    "double(10,2)": ("1.5",),
    "decimal(12,2)": ("12.50", "-0.01", "0"),
    "decimal(65,30)": ("12345678901234567890123456789012345.123456789012345678901234567890",),
    "decimal(5,0)": ("7",),
    "decimal(10,2) unsigned": ("1.5",),
    "bit(1)": ("b'1'", "b'0'"),
    "bit(5)": ("b'10110'",),
    "bit(12)": ("b'101101110001'",),
    "bit(64)": ("b'1'",),
    "char(5)": ("'ab'", "''"),
    "varchar(10)": ("'ab '",),
    "text": ("'" + _TEXT.replace("\\", "\\\\") + "'", "''"),
    "longtext": ("'x'",),
    "varchar(10) character set latin1": ("'é€'",),
    "char(5) character set ucs2": ("'é'",),
    "char(5) character set utf16": ("'é😀'",),
    "varchar(10) character set cp1251": ("'Ж'",),
    "varchar(10) character set sjis": ("'あ'",),
    "text character set latin2": ("'ł'",),
    "varchar(9) character set utf8mb3": ("'é€'",),
    "binary(4)": ("x'00ff10'", "x'61626364'"),
    "varbinary(10)": ("x'00ff1000'", "''"),
    "blob": ("x'00ff10'",),
    "longblob": ("x'ff'",),
    "date": (*_DATES, "'1582-10-10'", "'0001-01-01'", "'0000-00-00'", "'2024-02-00'"),
    "time": ("'12:34:56'", "'00:00:00'", "'838:59:59'", "'-838:59:59'", "'-00:00:01'"),
    "time(3)": ("'12:34:56.120'", "'-12:34:56.5'"),
    "time(6)": ("'12:34:56.123456'", "'-838:59:58.999999'", "'-00:00:00.000001'"),
    "datetime": ("'2024-01-02 03:04:05'", "'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'", "'1582-10-10 00:00:00'",
                 "'0001-01-01 00:00:00'", "'0000-00-00 00:00:00'", "'2024-00-00 00:00:00'"),
    "datetime(1)": ("'2024-01-02 03:04:05.1'",),
    "datetime(3)": ("'2024-01-02 03:04:05.120'",),
    "datetime(6)": ("'2024-01-02 03:04:05.123456'", "'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'",
                    "'0000-00-00 00:00:00'"),
    "timestamp null": ("'2024-01-02 03:04:05'", "'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'",
                       "'0000-00-00 00:00:00'"),
    "timestamp(1) null": ("'2024-01-02 03:04:05.1'",),
    "timestamp(3) null": ("'2024-01-02 03:04:05.123'", "'2024-01-02 03:04:05.12'", "'2024-01-02 03:04:05'"),
    "timestamp(6) null": ("'2024-01-02 03:04:05.123456'", "'2024-01-02 03:04:05.12'", "'2024-01-02 03:04:05'",
                          "'0000-00-00 00:00:00'"),
    "enum('a','c d','é','1')": ("'a'", "'c d'", "'é'", "'1'", "''"),
    "set('x','y','z')": ("'x,z'", "''"),
    "json": ("'{\"b\": 1,  \"a\":1.50}'", "'null'"),
    "uuid": ("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",),
    "point": ("ST_GeomFromText('POINT(1 2.5)')", "ST_GeomFromText('POINT(1 2.5)', 4326)"),
    "geometry": ("ST_GeomFromText('LINESTRING(0 0,1 1)')",),
    "int invisible default 5": ("6",),
}
_POSTGRESQL_OPERATIONS = Operations(
    tables={"whole": 2, "part": 2, "keyless": 1, "indexed": 2, "bare": 1},
    before=(
        *(f"CREATE TABLE {name} (a text, v text, b integer, big text, bin bytea, list text[], doc jsonb, "
          "n numeric(12,2), PRIMARY KEY (b, a))" for name in ("whole", "part")),
        *(f"ALTER TABLE {name} ALTER {column} SET STORAGE EXTERNAL" for name in ("whole", "part")
          for column in ("big", "bin", "list", "doc")),
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE keyless (v text, n integer)",
        "ALTER TABLE keyless REPLICA IDENTITY FULL",
        "CREATE TABLE indexed (a integer NOT NULL, b text, c integer PRIMARY KEY)",
        "CREATE UNIQUE INDEX indexed_a ON indexed (a)",
        "ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a",
        "CREATE TABLE bare (a integer NOT NULL, b text)",
        "CREATE UNIQUE INDEX bare_a ON bare (a)",
        "ALTER TABLE bare REPLICA IDENTITY USING INDEX bare_a",
        "INSERT INTO whole (a, b, v) VALUES ('old', 1, 'at rest')",
    ),
    transactions=(
        *(transaction for name in ("whole", "part") for transaction in (
            (f"INSERT INTO {name} VALUES ('i', 'v', 1, {_BIG}, {_BIG}::bytea, ARRAY[{_BIG}], to_jsonb({_BIG}), 1.5), "
             "('j', NULL, 2, NULL, NULL, NULL, NULL, NULL), ('é', '', 3, '', '', '{}', '{}', 0), "
             "('😀', NULL, 4, NULL, NULL, NULL, NULL, NULL)",),
            (f"UPDATE {name} SET v = 'w' WHERE a = 'i'",),
            (f"UPDATE {name} SET a = 'ii' WHERE a = 'i'",),
            (f"UPDATE {name} SET big = 'short' WHERE a = 'ii'", f"UPDATE {name} SET n = n + 1"),
            (f"UPDATE {name} SET big = 'short' WHERE a = 'ii'",),
            (f"DELETE FROM {name} WHERE a = 'ii'",),
        )),
        ("INSERT INTO keyless VALUES ('a', 1)", "UPDATE keyless SET n = 2", "DELETE FROM keyless"),
        *(transaction for name in ("indexed", "bare") for transaction in (
            (f"INSERT INTO {name} (a, b{', c' if name == 'indexed' else ''}) VALUES "
             f"(1, 'x'{', 1' if name == 'indexed' else ''})",),
            (f"UPDATE {name} SET b = 'y'",),
            (f"UPDATE {name} SET a = 2",),
            (f"DELETE FROM {name}",),
        )),
        ("INSERT INTO whole (a, b, v) VALUES ('s', 9, 'kept')", "SAVEPOINT one",
         "INSERT INTO whole (a, b, v) VALUES ('t', 9, 'rolled back')", "ROLLBACK TO one",
         "INSERT INTO part (a, b, v) VALUES ('s', 9, 'other table')",
         "UPDATE whole SET v = 'changed again' WHERE a = 's'"),
        ("TRUNCATE whole, part",),
        ("ALTER TABLE whole ADD extra integer DEFAULT 5", "INSERT INTO whole (a, b) VALUES ('q', 9)"),
        ("ALTER TABLE whole DROP v", "UPDATE whole SET n = 2 WHERE a = 'q'"),
        ("ALTER TABLE whole RENAME n TO amount", "ALTER TABLE whole ALTER extra TYPE text",
         "INSERT INTO whole (a, b, extra) VALUES ('r', 9, 'text')"),
    ),
)
_MARIADB_OPERATIONS = Operations(
    tables={"whole": 2, "keyless": 1, "uniq": 2, "strict": 2},
    before=(
        "CREATE TABLE whole (a varchar(20), v text, b int, n decimal(12,2), PRIMARY KEY (b, a))",
        "CREATE TABLE keyless (v text, n int)",
        "CREATE TABLE uniq (v varchar(20) NOT NULL UNIQUE, n int)",
        "CREATE TABLE strict (id int PRIMARY KEY, d date NOT NULL, at datetime NOT NULL, ts timestamp NOT NULL "
        "DEFAULT '2000-01-01 00:00:00')",
        "INSERT INTO whole (a, b, v) VALUES ('old', 1, 'at rest')",
    ),
    transactions=(
        ("INSERT INTO whole VALUES ('i', 'v', 1, 1.5), ('j', NULL, 2, NULL), ('é', '', 3, 0), ('😀', NULL, 4, NULL)",
         "INSERT INTO keyless VALUES ('a', 1)", "INSERT INTO whole VALUES ('l', 'v', 3, 1.5)"),
        ("UPDATE whole SET v = 'w' WHERE a = 'i'",),
        ("UPDATE whole SET a = 'ii' WHERE a = 'i'",),
        ("UPDATE whole SET v = 'w' WHERE a = 'ii'",),
        ("DELETE FROM whole WHERE a = 'ii'",),
        ("UPDATE whole SET n = n + 1",),
        ("UPDATE keyless SET n = 2", "DELETE FROM keyless"),
        ("INSERT INTO uniq VALUES ('a', 1)",),
        ("UPDATE uniq SET v = 'b'",),
        ("INSERT INTO strict VALUES (1, '0000-00-00', '0000-00-00 00:00:00', '0000-00-00 00:00:00')",),
        ("REPLACE INTO whole VALUES ('l', 'replaced', 3, 1.5)",),
        ("INSERT INTO whole VALUES ('l', 'v', 3, 1.5) ON DUPLICATE KEY UPDATE v = 'updated'",),
        ("INSERT INTO whole (a, b, v) VALUES ('s', 9, 'kept')", "SAVEPOINT one",
         "INSERT INTO whole (a, b, v) VALUES ('t', 9, 'rolled back')", "ROLLBACK TO one",
         "INSERT INTO uniq VALUES ('s', 1)", "UPDATE whole SET v = 'changed again' WHERE a = 's'"),
        ("TRUNCATE whole",),
        ("ALTER TABLE whole ADD extra int DEFAULT 5",),
        ("INSERT INTO whole (a, b) VALUES ('q', 9)",),
        ("ALTER TABLE whole DROP v",),
        ("UPDATE whole SET n = 2 WHERE a = 'q'",),
        ("ALTER TABLE whole CHANGE n amount decimal(12,2), MODIFY extra text",),
        ("INSERT INTO whole (a, b, extra) VALUES ('r', 9, 'text')",),
    ),
)
# fmt: on

WORKLOADS: Mapping[str, Workload] = {
    "postgresql": Workload(
        database="PostgreSQL",
        before=(
            "CREATE EXTENSION hstore",
            "CREATE EXTENSION citext",
            "CREATE EXTENSION ltree",
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "CREATE DOMAIN small_number AS integer CHECK (value > 0)",
            "CREATE DOMAIN price AS numeric(12,2)",
            "CREATE TYPE pair AS (a integer, b text)",
        ),
        cases=_cases(_POSTGRESQL),
        operations=_POSTGRESQL_OPERATIONS,
    ),
    "mariadb": Workload(
        database="MariaDB",
        before=(),
        cases=_cases(_MARIADB, not_at_rest=[("year", "0")]),
        operations=_MARIADB_OPERATIONS,
    ),
}
