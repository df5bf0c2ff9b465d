"""One machine-learning model as assets: training set, candidate, champion."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dagster as dg

from assets.build import CAUSE_TAG, Built, build, code_version, last_version, versions
from assets.features import FEATURE_TABLES
from catalog import keys
from catalog.keys import Key
from catalog.spec import Model
from resources.platform import Platform

__all__ = ["model_assets"]

_CODE = ("ml", "feature_repo")


def model_assets(model: Model) -> list[dg.AssetsDefinition]:
    """The assets of one model YAML."""
    return [_training_set(model), _candidate(model), _champion(model)]


def _training_set(model: Model) -> dg.AssetsDefinition:
    key, label_table = keys.training_set(model.name), Key.parse(model.label.table)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        owners=[model.owner],
        kinds={"feast", "deltalake"},
        tags={"domain": model.domain},
        code_version=code_version(*_CODE),
        deps=[k.path for k in (*FEATURE_TABLES, label_table)],
        description=f"Entity rows with features as known at honest cut-offs, and mature labels. {model.description}",
    )
    def training_set(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[Any]:
        now = platform.clock.now()

        def made() -> Built:
            from ml.features import historical
            from ml.training import NotTrained, build_training_set

            store = platform.feature_store
            try:
                found = build_training_set(model, platform.lake, lambda name, rows: historical(store, name, rows), now)
            except NotTrained as reason:
                context.log.warning(str(reason))
                return Built("none", {"not_trained": str(reason)})
            platform.lake.overwrite(key, found.table)
            cutoffs = [str(c) for c in (*found.cutoffs.training, found.cutoffs.holdout)]
            metadata = {"rows": found.table.num_rows, "cutoffs": cutoffs, "digest": found.digest}
            return Built(found.digest, {**metadata, "built_at": now.isoformat()})

        inputs = {k.slashed: platform.lake.version(k) for k in (*FEATURE_TABLES, label_table)}
        depends = {"code": code_version(*_CODE), "model": model.model_dump(), "now": now, **inputs}
        return build(context, platform, key, depends, made)

    return training_set


def _candidate(model: Model) -> dg.AssetsDefinition:
    key, upstream = keys.candidate(model.name), keys.training_set(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        owners=[model.owner],
        kinds={"mlflow", model.algorithm.split(":")[-1].lower()},
        tags={"domain": model.domain},
        code_version=code_version(*_CODE),
        deps=[upstream.path],
        description=f"The latest trained version, judged by its gate. {model.purpose}",
        check_specs=[
            dg.AssetCheckSpec("gate", asset=key.path, description="Meets its bar, every baseline, champion and slice.")
        ],
    )
    def candidate(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        depends = {
            "code": code_version(*_CODE),
            "model": model.model_dump(),
            **versions(platform, [upstream]),
        }
        result = build(context, platform, key, depends, lambda: _train(context, platform, model))
        if cause := context.run.tags.get(CAUSE_TAG):
            # The sensor's own memory belongs to a Dagster instance; this outlives it.
            requested = {"cause_id": cause, "requested_at": platform.clock.now().isoformat()}
            platform.ledger.record(keys.answered_cause(model.name), cause, requested)
        yield result
        last = platform.ledger.last(key.slashed)
        found = last.outcome["metadata"] if last else {}
        yield dg.AssetCheckResult(
            check_name="gate",
            passed=bool(found.get("gate_passed")),
            severity=dg.AssetCheckSeverity.WARN,
            description=str(found.get("not_trained") or "; ".join(found.get("gate", []))),
        )

    return candidate


def _train(context: dg.AssetExecutionContext, platform: Platform, model: Model) -> Built:
    from ml.features import compile_plan
    from ml.registry import Registry
    from ml.tracking import Context, code_state
    from ml.training import restore_training_set, train

    key = keys.training_set(model.name)
    last = platform.ledger.last(key.slashed)
    facts = last.outcome["metadata"] if last else {"not_trained": f"{key} was never built"}
    if "not_trained" in facts:
        return Built("none", {"not_trained": facts["not_trained"]})
    training_set = restore_training_set(
        model, platform.lake.read(key), datetime.fromisoformat(facts["built_at"]), facts["digest"]
    )
    registered = Registry.open(platform.settings).register_candidate(
        model,
        training_set,
        train(model, training_set),
        compile_plan(platform.feature_store, model.name),
        Context(platform.settings.actor, context.run.run_id, code_state(), *_cause(context, platform, model)),
    )
    return Built(
        f"{model.name}-{registered.version}",
        {
            "model_version": registered.version,
            "holdout_rows": registered.holdout_rows,
            "metrics": dict(registered.metrics),
            "baselines": {name: dict(values) for name, values in registered.baselines.items()},
            "gate_passed": registered.gate.passed,
            "gate": [v.text for v in registered.gate.verdicts],
            "mlflow_run_id": registered.run_id,
            "card_md": registered.card,
            "card_path": next(platform.settings.artifacts_dir.glob(f"**/{registered.run_id}/**/card/*.html"), None),
        },
    )


def _cause(context: dg.AssetExecutionContext, platform: Platform, model: Model) -> tuple[str, datetime | None]:
    """The drift that this run answers, if it answers one, and since when it lasts."""
    from ml.drift_status import read_status

    cause = context.run.tags.get(CAUSE_TAG, "")
    return cause, read_status(platform.lake, model).drifted_from if cause else None


def _champion(model: Model) -> dg.AssetsDefinition:
    key, upstream = keys.champion(model.name), keys.candidate(model.name)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        owners=[model.owner],
        kinds={"mlflow"},
        tags={"domain": model.domain},
        code_version=code_version(*_CODE),
        deps=[upstream.path],
        output_required=False,  # no version was ever promoted: there is nothing to deploy
        description=f"The version in production: promoted by its policy ({model.promotion.policy}) or an approver.",
    )
    def champion(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        depends = {
            "code": code_version("ml/registry.py"),
            "policy": model.promotion.model_dump(),
            **versions(platform, [upstream]),
        }
        if _decided_by_a_person(platform, model):
            platform.ledger.forget(key.slashed)
        result = build(context, platform, key, depends, lambda: _promote(platform, model))
        if last_version(platform.ledger, key) != "none":
            yield result
        else:
            context.log.warning(f"{model.name} has no champion: no version was promoted yet")

    return champion


def _decided_by_a_person(platform: Platform, model: Model) -> bool:
    """Whether `headwater approve` or `rollback`, which deploy at once, serve another version than was last recorded."""
    from ml.predictor import MissingPackage, current_folder

    last = platform.ledger.last(keys.champion(model.name).slashed)
    try:
        served = current_folder(platform.settings.endpoints_dir, model.name).name
    except MissingPackage:
        return False
    return last is not None and last.outcome["metadata"].get("model_version") != served


def _promote(platform: Platform, model: Model) -> Built:
    from ml.registry import Registry

    registry = Registry.open(platform.settings)
    last = platform.ledger.last(keys.candidate(model.name).slashed)
    version = last.outcome["metadata"].get("model_version") if last else None
    if version is not None:
        registry.promote_by_policy(model, version, platform.clock.now())
    serving = registry.alias(model.name, "champion")
    if serving is None:
        return Built("none")
    traced = registry.lineage(model.name, serving)
    return Built(f"{model.name}-{serving}", {"model_version": serving, "promoted_by": traced.promoted_by})
