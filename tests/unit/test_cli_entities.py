"""Files of entity rows: what is read, how instants become UTC, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from headwater.entities_file import EntitiesError, as_given, read_entities, read_table, write_table

NOON = datetime(2011, 9, 10, 12)


def read(path: Path) -> pa.Table:
    return read_entities(path, read_table(path))


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path / "entities.parquet")
    return path / "entities.parquet"


@pytest.mark.parametrize(
    "instants",
    [
        pa.array([NOON], pa.timestamp("us")),
        pa.array([NOON], pa.timestamp("s")),
        pa.array([NOON], pa.timestamp("ns")),
        pa.array([datetime(2011, 9, 10, 14, tzinfo=timezone(timedelta(hours=2)))], pa.timestamp("ms", "Europe/Paris")),
        pa.array([NOON], pa.timestamp("us", "UTC")),
        pa.array(["2011-09-10T12:00:00"]),
        pa.array([" 2011-09-10 14:00+02:00"], pa.large_string()),
        pa.array(["2011-09-10T12:00:00.000000Z"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_instant_becomes_naive_utc(tmp_path: Path, instants: pa.Array) -> None:
    rows = read(parquet(tmp_path, customer_id=pa.array([1], pa.int32()), event_timestamp=instants))
    assert rows.schema == pa.schema({"customer_id": pa.int64(), "event_timestamp": pa.timestamp("us")})
    assert rows["event_timestamp"].to_pylist() == [NOON]


def test_rows_go_back_with_the_instants_and_ids_that_they_came_with(tmp_path: Path) -> None:
    at = pa.array([datetime(2011, 9, 10, 14, tzinfo=timezone(timedelta(hours=2)))], pa.timestamp("us", "Europe/Paris"))
    path = parquet(tmp_path, customer_id=[17850.0], note=["a"], event_timestamp=at)
    given = read_table(path)
    found = read_entities(path, given).append_column("txn_count_7d", [[3]])
    assert as_given(found, given) == given.append_column("txn_count_7d", [[3]])


def test_a_date_is_its_midnight_and_other_columns_and_their_order_are_kept(tmp_path: Path) -> None:
    days = pa.array([NOON.date(), NOON.date()])
    rows = read(parquet(tmp_path, note=["b", "a"], event_timestamp=days, customer_id=[2, 2], label=[0.5, None]))
    assert rows.column_names == ["note", "event_timestamp", "customer_id", "label"]
    assert rows["event_timestamp"].to_pylist() == [NOON.replace(hour=0)] * 2
    assert rows["note"].to_pylist() == ["b", "a"]


def test_csv_in_and_out(tmp_path: Path) -> None:
    path = tmp_path / "entities.csv"
    path.write_text("customer_id,event_timestamp,note\n17850,2011-09-10T00:00:00,a\n13047,2011-09-10 12:30:00,\n")
    rows = read(path)
    assert rows["customer_id"].to_pylist() == [17850, 13047]
    assert rows["event_timestamp"].to_pylist() == [datetime(2011, 9, 10), datetime(2011, 9, 10, 12, 30)]
    write_table(rows, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == '"customer_id","event_timestamp","note"'
    path.write_text("customer_id,event_timestamp\n17850,2011-09-10T14:00:00+02:00\n")
    assert read(path)["event_timestamp"].to_pylist() == [NOON]


def test_integers_that_a_data_frame_has_made_floats_and_csv_of_mixed_instants(tmp_path: Path) -> None:
    rows = read(parquet(tmp_path, customer_id=[17850.0, -1.0], event_timestamp=AT))
    assert rows["customer_id"].to_pylist() == [17850, -1]
    assert rows["customer_id"].type == pa.int64()
    path = tmp_path / "entities.csv"
    path.write_text("customer_id,event_timestamp\n17850.0,2011-09-10\n2.0,2011-09-10T14:00:00+02:00\n")
    rows = read(path)
    assert rows["customer_id"].to_pylist() == [17850, 2]
    assert rows["event_timestamp"].to_pylist() == [NOON.replace(hour=0), NOON]


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    nothing = {"customer_id": pa.array([], pa.float64()), "event_timestamp": pa.array([], pa.string())}
    rows = read(parquet(tmp_path, **nothing))
    assert rows.schema == pa.schema({"customer_id": pa.int64(), "event_timestamp": pa.timestamp("us")})
    assert rows.num_rows == 0


AT = pa.array([NOON, NOON])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"customer_id": [1, 2]}, "found columns customer_id; needed are customer_id and event_timestamp"),
        ({"customer": [1, 2], "event_timestamp": AT}, "found columns customer, event_timestamp; needed are"),
        ({"customer_id": ["1", "2"], "event_timestamp": AT}, "customer_id: found type string, allowed is an integer"),
        (
            {"customer_id": [1.0, 2.5, 2.0**53, float("inf")], "event_timestamp": [*AT, *AT]},
            "customer_id: found 2.5 in row 2, 9007199254740992.0 in row 3, inf in row 4; allowed are integers",
        ),
        ({"customer_id": [1.0, float("nan")], "event_timestamp": AT}, "found 1 null(s), first in row(s) 2"),
        ({"customer_id": [None, 1.0], "event_timestamp": AT}, "found 1 null(s), first in row(s) 1"),
        ({"customer_id": [1, None], "event_timestamp": AT}, "customer_id: found 1 null(s), first in row(s) 2"),
        ({"customer_id": pa.array([1, 2**63], pa.uint64()), "event_timestamp": AT}, "allowed are 64-bit integers"),
        (
            {"customer_id": [1, 2, 3], "event_timestamp": ["2011-09-10", "then", "10/9/2011"]},
            "event_timestamp: found 'then' in row 2, '10/9/2011' in row 3; allowed are ISO 8601 such as 2011-09-10T00:",
        ),
        ({"customer_id": range(9), "event_timestamp": ["?"] * 9}, "'?' in row 5 and 4 more; allowed are ISO 8601"),
        ({"customer_id": [1, 2], "event_timestamp": ["2011-09-10", None]}, "found 1 null(s), first in row(s) 2"),
        ({"customer_id": [1, 2], "event_timestamp": [1, 2]}, "event_timestamp: found type int64, allowed is a timest"),
        ({"customer_id": [1, 2], "event_timestamp": pa.array([None, NOON])}, "found 1 null(s), first in row(s) 1"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    path = parquet(tmp_path, **columns)
    with pytest.raises(EntitiesError) as refused:
        read(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(EntitiesError, match="found a file that is not parquet"):
        read(tmp_path / "a.parquet")
    with pytest.raises(EntitiesError, match=r"found suffix '.xlsx', allowed is one of .parquet, .csv"):
        read(tmp_path / "a.xlsx")
    with pytest.raises(EntitiesError, match="found no directory"):
        write_table(pa.table({"a": [1]}), tmp_path / "nowhere" / "out.csv")
