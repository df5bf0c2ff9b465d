"""Training sets over a real lake: honest labels, no future in features, the same data gives the same model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from models_shop import RETAIL, Shop, model_named, retail_shop, retrieval, small_lines, small_shop, write_shop

from catalog.keys import training_set
from lake.tables import Lake
from ml.training import (
    DigestMismatch,
    FeaturesMissing,
    NotEnoughHistory,
    OneClass,
    Retrieve,
    TooFewRows,
    TrainingSet,
    build_training_set,
    content_digest,
    plan_cutoffs,
    restore_training_set,
    train,
    training_entities,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return small_shop(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return retail_shop(tmp_path_factory.mktemp("retail"))


def shop_of(rows: list[tuple[int, datetime, float]], root: Path, now: datetime) -> Shop:
    customers, instants, amounts = zip(*rows, strict=True)
    n = len(rows)
    lines = pa.table(
        {
            "customer_id": pa.array(customers),
            "invoice_no": [str(i) for i in range(n)],
            "stock_code": ["S"] * n,
            "country": ["France"] * n,
            "invoiced_at": pa.array(instants, pa.timestamp("us")),
            "amount": pa.array(amounts),
            "bought": [True] * n,
            "refund": [False] * n,
        }
    )
    return write_shop(Lake(root), lines, now)


def test_the_label_window_is_closed_at_its_start_and_open_at_its_end(tmp_path: Path) -> None:
    now, cutoff = datetime(2021, 1, 1), datetime(2020, 10, 3)
    tick = timedelta(microseconds=1)
    rows = [(1, cutoff, 5.0), (2, cutoff + timedelta(days=90) - tick, 7.0), (3, cutoff + timedelta(days=90), 11.0)]
    rows += [(c, datetime(2020, 1, 1), 1.0) for c in (1, 2, 3)]
    rows += [(4, cutoff, 3.0), (5, cutoff - tick, 13.0), (5, cutoff - timedelta(days=90), 17.0)]
    shop = shop_of(rows, tmp_path, now)
    entities = training_entities(model_named("clv"), shop.lake, now)
    held = entities.filter(entities["is_holdout"])
    assert held["customer_id"].to_pylist() == [1, 2, 3, 5], "customer 4 had bought nothing before the cut-off"
    assert held["label"].to_pylist() == [5.0, 7.0, 0.0, 0.0]
    assert held["baseline_sum_90d"].to_pylist() == [0.0, 0.0, 0.0, 30.0]
    churned = training_entities(model_named("churn"), shop.lake, now)
    assert churned.filter(churned["is_holdout"])["label"].to_pylist() == [0, 0, 1, 1]


def test_entities_against_brute_force(tmp_path: Path) -> None:
    shop, clv = small_shop(tmp_path, customers=100), model_named("clv")
    entities = training_entities(clv, shop.lake, shop.now).to_pylist()
    bought = [r for r in shop.lines.to_pylist() if r["bought"]]
    cutoffs = plan_cutoffs(clv, min(r["invoiced_at"] for r in bought), shop.now)
    expected = []
    for cutoff in (*cutoffs.training, cutoffs.holdout):
        before = sorted({r["customer_id"] for r in bought if r["invoiced_at"] < cutoff})
        for customer in before:
            window = (cutoff, cutoff + timedelta(days=90))
            spend = sum(
                r["amount"]
                for r in bought
                if r["customer_id"] == customer and window[0] <= r["invoiced_at"] < window[1]
            )
            expected.append((customer, cutoff, pytest.approx(spend), cutoff == cutoffs.holdout))
    assert [(e["customer_id"], e["cutoff"], e["label"], e["is_holdout"]) for e in entities] == expected


def future_dependent(shop: Shop, retrieve_from: Callable[[pa.Table], Retrieve]) -> set[str]:
    """Features whose value changes when everything from the cut-off on is taken away."""
    churn = model_named("churn")
    entities = training_entities(churn, shop.lake, shop.now)
    changed = set()
    for cutoff in pc.unique(entities["cutoff"]).to_pylist():
        asked = entities.filter(pc.equal(entities["cutoff"], pa.scalar(cutoff, pa.timestamp("us"))))
        past = shop.lines.filter(pc.less(shop.lines["invoiced_at"], pa.scalar(cutoff, pa.timestamp("us"))))
        whole, truncated = retrieve_from(shop.lines)("churn", asked), retrieve_from(past)("churn", asked)
        changed |= {n for n in whole.column_names if not whole[n].equals(truncated[n])}
    return changed


def planted_leak(lines: pa.Table) -> Retrieve:
    """The honest features, but one looks a day past the instant."""

    def retrieve(service: str, entities: pa.Table) -> pa.Table:
        found = retrieval(lines)(service, entities)
        later = pc.add(entities["event_timestamp"], pa.scalar(timedelta(days=1)))
        ahead = entities.set_column(1, "event_timestamp", later)
        peeked = retrieval(lines)(service, ahead)["txn_count_30d"]
        return found.set_column(found.column_names.index("txn_count_30d"), "txn_count_30d", peeked)

    return retrieve


def test_no_feature_sees_past_its_cutoff_and_a_planted_leak_is_caught(shop: Shop) -> None:
    assert future_dependent(shop, retrieval) == set()
    assert future_dependent(shop, planted_leak) == {"txn_count_30d"}


def test_a_purchase_at_the_cutoff_itself_is_label_and_not_feature(tmp_path: Path) -> None:
    lines = small_lines(customers=120)
    now = datetime(2021, 2, 4, 9)
    cutoff = plan_cutoffs(model_named("churn"), datetime(2020, 1, 1), now).holdout
    at = pa.scalar(cutoff, pa.timestamp("us"))
    known = pc.unique(lines.filter(pc.less(lines["invoiced_at"], at))["customer_id"])
    extra = {n: pa.repeat(lines[n][0], len(known)) for n in lines.column_names}
    extra |= {
        "customer_id": known,
        "invoiced_at": pa.repeat(at, len(known)),
        "invoice_no": pa.array([f"X{i}" for i in range(len(known))]),
        "bought": pa.repeat(True, len(known)),
        "refund": pa.repeat(False, len(known)),
    }
    shop = write_shop(Lake(tmp_path), pa.concat_tables([lines, pa.table(extra)]), now)
    declared = model_named("clv")
    held = build_training_set(declared, shop.lake, shop.retrieve, now).holdout
    assert pc.min(held["label"]).as_py() > 0
    assert pc.min(held["days_since_last_txn"]).as_py() > 0
    assert pc.min(held["baseline_recency_days"]).as_py() > 0


def test_the_same_data_gives_the_same_digest_and_scores(shop: Shop, tmp_path: Path) -> None:
    for name in ("churn", "clv"):
        declared = model_named(name)
        first = build_training_set(declared, shop.lake, shop.retrieve, shop.now)
        shuffled = shop.lines.take(np.random.default_rng(1).permutation(shop.lines.num_rows))
        other = write_shop(Lake(tmp_path / name), shuffled, shop.now)
        second = build_training_set(declared, other.lake, other.retrieve, shop.now)
        assert first.digest == second.digest
        scores = [train(declared, t).evaluation.holdout.scores for t in (first, second)]
        np.testing.assert_array_equal(*scores)


def test_the_digest_sees_every_value_and_no_order(shop: Shop) -> None:
    table = build_training_set(model_named("churn"), shop.lake, shop.retrieve, shop.now).table
    digest = content_digest(table)
    assert content_digest(table.take(pa.array(range(table.num_rows))[::-1])) == digest
    for name in table.column_names:
        row = table.num_rows // 2
        values = table[name].to_pylist()
        for changed in (None, values[0] if values[0] != values[row] else values[-1]):
            if changed == values[row]:
                continue
            column = pa.array([*values[:row], changed, *values[row + 1 :]], table[name].type)
            other = table.set_column(table.column_names.index(name), name, column)
            assert content_digest(other) != digest, name


def test_a_stored_training_set_comes_back_the_same(shop: Shop) -> None:
    churn, key = model_named("churn"), training_set("churn")
    built = build_training_set(churn, shop.lake, shop.retrieve, shop.now)
    shuffled = built.table.take(np.random.default_rng(2).permutation(built.table.num_rows))
    shop.lake.overwrite(key, shuffled)
    restored = restore_training_set(churn, shop.lake.read(key), shop.now, built.digest)
    assert restored.table.equals(built.table)
    assert (restored.features, restored.cutoffs, restored.digest) == (built.features, built.cutoffs, built.digest)
    shop.lake.append(key, shuffled.slice(0, 1))
    with pytest.raises(DigestMismatch, match="was recorded"):
        restore_training_set(churn, shop.lake.read(key), shop.now, built.digest)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"days": 120}, NotEnoughHistory, "days of history"),
        ({"customers": 20}, TooFewRows, "needed are 50"),
    ],
)
def test_another_shop_is_refused_with_a_reason(
    tmp_path: Path, options: dict[str, int], error: type[Exception], message: str
) -> None:
    other = small_shop(tmp_path, **options)
    with pytest.raises(error, match=message):
        build_training_set(model_named("churn"), other.lake, other.retrieve, other.now)


def test_labels_of_one_class_are_refused(tmp_path: Path) -> None:
    start, now = datetime(2020, 1, 1), datetime(2021, 2, 4)
    faithful = [(c, start + timedelta(days=d, hours=c % 24), 9.0) for c in range(60) for d in range(0, 400, 30)]
    shop = shop_of(faithful, tmp_path, now)
    with pytest.raises(OneClass, match="found label 0 in all"):
        build_training_set(model_named("churn"), shop.lake, shop.retrieve, now)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    shop = small_shop(tmp_path)
    empty = write_shop(Lake(tmp_path / "empty"), shop.lines.slice(0, 0), shop.now)
    with pytest.raises(NotEnoughHistory, match="has no rows"):
        build_training_set(model_named("churn"), empty.lake, empty.retrieve, empty.now)


def test_a_month_of_silence_and_single_purchases_train(tmp_path: Path) -> None:
    lines = small_lines(customers=400, seed=8)
    silent = pc.and_(
        pc.greater_equal(lines["invoiced_at"], pa.scalar(datetime(2020, 6, 1), pa.timestamp("us"))),
        pc.less(lines["invoiced_at"], pa.scalar(datetime(2020, 7, 1), pa.timestamp("us"))),
    )
    shop = write_shop(Lake(tmp_path), lines.filter(pc.invert(silent)), datetime(2021, 2, 4, 9))
    for name in ("churn", "clv"):
        declared = model_named(name)
        trained = train(declared, build_training_set(declared, shop.lake, shop.retrieve, shop.now))
        assert np.isfinite(trained.evaluation.holdout.scores).all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.slice(1), "rows for"),
        (lambda t: t.take(pa.array(range(t.num_rows))[::-1]), "in another order"),
        (lambda t: t.drop_columns(["country"]), "returned no country"),
    ],
)
def test_a_feature_service_that_breaks_its_word_is_refused(
    shop: Shop, broken: Callable[[pa.Table], pa.Table], message: str
) -> None:
    def retrieve(service: str, entities: pa.Table) -> pa.Table:
        return broken(shop.retrieve(service, entities))

    with pytest.raises(FeaturesMissing, match=message):
        build_training_set(model_named("churn"), shop.lake, retrieve, shop.now)


def retail_set(retail: Shop, name: str) -> TrainingSet:
    return build_training_set(model_named(name), retail.lake, retail.retrieve, retail.now)


def test_the_retail_file_reproduces_its_reference_facts(retail: Shop) -> None:
    held = retail_set(retail, "churn").holdout
    assert (held.num_rows, pc.sum(held["label"]).as_py()) == (3370, 1451)
    with duckdb.connect() as db:
        spend = db.sql(f"""
            SELECT sum(Quantity * UnitPrice) FROM '{RETAIL}'
            WHERE CustomerID IN (SELECT CustomerID FROM '{RETAIL}' WHERE {PURCHASE} AND InvoiceDate < '2011-09-10')
              AND {PURCHASE} AND InvoiceDate >= '2011-09-10' AND InvoiceDate < '2011-12-09'""").fetchall()[0][0]
    labels = retail_set(retail, "clv").holdout["label"]
    assert pc.sum(labels).as_py() == pytest.approx(spend)


PURCHASE = "InvoiceNo[1] NOT IN ('C', 'A') AND Quantity > 0 AND UnitPrice > 0 AND CustomerID IS NOT NULL"


def test_the_retail_models_beat_their_baselines(retail: Shop) -> None:
    churn = train(model_named("churn"), retail_set(retail, "churn")).evaluation
    assert churn.metrics["roc_auc"] > churn.baselines["recency_rule"]["roc_auc"] + 0.03
    assert churn.metrics["log_loss"] < min(b["log_loss"] for b in churn.baselines.values())
    clv = train(model_named("clv"), retail_set(retail, "clv")).evaluation
    assert clv.metrics["mae"] < min(b["mae"] for b in clv.baselines.values()) - 15
    assert clv.metrics["spearman"] > max(b["spearman"] for b in clv.baselines.values())
    print(churn.metrics, churn.baselines, clv.metrics, clv.baselines)
