"""Drift heals itself once: a real daemon over a real home, with drift that was injected into the change log."""

from __future__ import annotations

import dagster as dg
import orjson
from dagster import DagsterRunStatus
from dagster._core.scheduler.instigation import TickStatus

from catalog import keys
from lake.ledger import Ledger

MODELS = ("churn", "clv")


def test_new_changes_ask_for_one_run_that_lands_them(healed, shop_run):
    (run,) = healed.after.runs_for("changes")
    assert run.status is DagsterRunStatus.SUCCESS
    assert "changes not landed: cdc.shop.order_lines-0" in run.tags["headwater/cause"]
    (injected,) = healed.after.home.sql("SELECT count(*) FROM raw.shop.order_lines WHERE invoice_no LIKE 'J%'")
    assert injected[0] > 0
    assert (
        healed.after.home.rows()["raw.shop.order_lines"] == shop_run.home.rows()["raw.shop.order_lines"] + injected[0]
    )


def test_sustained_drift_retrains_each_model_once_over_ticks_and_a_restart(healed):
    runs = healed.after.runs_for("drift")
    assert sorted(run.tags["headwater/model"] for run in runs) == list(MODELS)
    assert [run.status for run in runs] == [DagsterRunStatus.SUCCESS] * 2
    status = {s["model"]: s for s in orjson.loads(healed.after.home.succeeds("drift", "status", "--json").out)}
    for run in runs:
        found = status[run.tags["headwater/model"]]
        assert found["wants_retraining"]
        assert run.tags["headwater/cause_id"] == found["cause_id"]
        assert run.tags["dagster/run_key"] == f"drift:{found['cause_id']}"
        assert "PSI" in run.tags["headwater/cause"]


def test_what_was_answered_is_known_to_any_other_instance(healed):
    """A Dagster without a home of its own forgets its cursors; the data directory does not."""
    ledger = Ledger(healed.after.home.path / "ledger.db")
    for run in healed.after.runs_for("drift"):
        answered = ledger.last(keys.answered_cause(run.tags["headwater/model"]))
        assert answered is not None
        assert answered.outcome["cause_id"] == run.tags["headwater/cause_id"]


def test_the_daemon_went_on_ticking_after_the_retraining(healed):
    """Otherwise "once" would show nothing."""
    requesting = [tick for tick in healed.after.ticks["drift"] if tick.run_ids]
    later = [t for t in healed.after.ticks["drift"] if t.timestamp > max(tick.timestamp for tick in requesting)]
    assert len(later) >= 2
    assert {tick.status for tick in later} == {TickStatus.SKIPPED}
    assert all("already requested" in (tick.skip_reason or "") for tick in later)


def test_the_retrained_version_went_through_the_gate(healed):
    assert healed.after.versions == {model: ["1", "2"] for model in MODELS}
    versions = orjson.loads(healed.after.home.succeeds("models", "--json").out)
    second = {row["model"]: row for row in versions if row["version"] == "2"}
    assert set(second) == set(MODELS)
    for row in second.values():
        assert "candidate" in row["aliases"]
        assert row["gate"] in ("passed", "failed")
        assert ("champion" in row["aliases"]) == (row["gate"] == "passed")
    with healed.after.home.instance() as instance:
        for model in MODELS:
            key = dg.AssetCheckKey(dg.AssetKey(["models", model, "candidate"]), "gate")
            (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            retraining = {run.run_id for run in healed.after.runs_for("drift")}
            assert record.run_id in retraining


def test_without_drift_nothing_is_asked_for(healed):
    """The same daemon, before drift was injected."""
    calm = healed.calm
    assert calm.ticks["drift"]
    assert calm.ticks["changes"]
    assert [run for run in calm.runs if run.tags.get("headwater/trigger")] == []
    assert {tick.status for ticks in calm.ticks.values() for tick in ticks} == {TickStatus.SKIPPED}
    assert all("no sustained drift" in (tick.skip_reason or "") for tick in calm.ticks["drift"])
    assert calm.versions == {model: ["1"] for model in MODELS}
