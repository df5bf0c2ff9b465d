"""The change streams of the source tables, and the raw tables that they land in."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.build import Built, Stopwatch, build, code_version
from catalog import keys
from catalog.keys import Key
from catalog.load import Catalog
from catalog.settings import Settings
from catalog.spec import Source
from resources.platform import Platform

if TYPE_CHECKING:
    from streaming.landing import SchemaChange

__all__ = ["raw_assets", "stream_assets"]

# By whether the captured table has no key.
_HISTORY = {
    False: "Append-only history of changes.",
    True: "Append-only history of changes of a table without key: an update is two of them, d for the row that went, u "
    "for the one that came; dbt's macro current_copies counts them into the rows that there are.",
}


def stream_assets(catalog: Catalog, settings: Settings) -> dg.AssetsDefinition:
    """The change streams: what the database's connector, or a replay of a shop, appends to the change log."""
    kinds = {"kafka" if settings.log_url else "sqlite"}
    if settings.shop_url:
        kinds.add("postgresql" if settings.shop_url.startswith("postgres") else "mysql")

    @dg.multi_asset(
        name="replay",
        specs=[
            dg.AssetSpec(
                keys.stream(s.system, s.table).path,
                group_name=keys.stream(s.system, s.table).group,
                description=f"Changes of the shop's table {s.table}: {s.description}",
                owners=[s.owner],
                kinds=kinds,
                tags={"domain": s.domain},
                code_version=code_version("streaming"),
            )
            for s in catalog.sources
        ],
    )
    def replay(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        from streaming.capture.errors import CaptureError
        from streaming.replay import ReplayError
        from streaming.retail import RetailFileError
        from streaming.source import advance

        watch = Stopwatch()
        try:
            report = advance(platform.settings, catalog, platform.log)
        except (ReplayError, RetailFileError, CaptureError) as error:
            raise dg.Failure(f"stream/shop/*: {error}", allow_retries=False) from error
        share = {name: round(value / len(catalog.sources), 3) for name, value in watch.metadata().items()}
        connectors = _connectors(catalog, platform.settings) if platform.settings.shop_url else {}
        for source in catalog.sources:
            topic = keys.cdc_topic(source.system, source.table)
            yield dg.MaterializeResult(
                asset_key=keys.stream(source.system, source.table).path,
                metadata={
                    "appended": report.appended[topic],
                    "now": str(report.now),
                    "rebuilt": report.appended[topic] > 0,
                    **connectors.get(source.system, {}),
                    **share,
                },
                data_version=dg.DataVersion("-".join(map(str, report.ends[topic]))),
            )

    return replay


def _connectors(catalog: Catalog, settings: Settings) -> dict[str, dict[str, Any]]:
    """What each system's connector says of itself."""
    from streaming.stream_status import source_state

    states = [source_state(settings, system) for system in dict.fromkeys(s.system for s in catalog.sources)]
    numbers = ("sent_rows", "rows_per_s", "lag_rows", "lag_bytes", "lag_s", "retained_bytes", "limit_bytes")
    return {
        state.system: {
            "position": dict(state.position),
            "epoch": state.epoch,
            "last_event": str(state.last_event_at),
            **{name: value for name in numbers if (value := getattr(state, name)) is not None},
        }
        for state in states
    }


def raw_assets(catalog: Catalog) -> list[dg.AssetsDefinition]:
    """One raw table for each declared source."""
    return [_raw_asset(source) for source in catalog.sources]


def _raw_asset(source: Source) -> dg.AssetsDefinition:
    key = keys.raw(source.system, source.table)

    @dg.asset(
        key=key.path,
        group_name=key.group,
        deps=[keys.stream(source.system, source.table).path],
        description=f"{_HISTORY[source.keyless]} {source.description}",
        owners=[source.owner],
        kinds={"deltalake"},
        tags={"domain": source.domain, "pii": "yes" if any(c.pii for c in source.columns) else "no"},
        metadata={
            "dagster/column_schema": dg.TableSchema(
                [dg.TableColumn(c.name, c.type, description=c.description) for c in source.columns]
            )
        },
        code_version=code_version("streaming"),
    )
    def raw(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        from streaming.landing import land, landed_version, schema_changes
        from streaming.landing_state import landing_state

        watch = Stopwatch()
        report = land(source, platform.log, platform.lake, platform.settings.landing_batch_rows)
        for change in schema_changes(source, platform.log, platform.lake, _last_told(context.instance, key)):
            context.log_event(_schema_event(key, change))
        version = str(landed_version(source, platform.lake))

        def landed() -> Built:
            return Built(version, {"rows": platform.lake.rows(key), "delta_version": report.version})

        result = build(context, platform, key, {"landed": version}, landed)
        new = {"landed": report.landed, "quarantined": report.quarantined, "repeated": report.repeated}
        state = landing_state(source, platform.log, platform.lake, platform.clock.now())
        behind: dict[str, Any] = {"lag_rows": state.lag_rows, "lag_bytes": state.lag_bytes, "lag_s": state.lag_s}
        behind |= {"rows_per_s": state.rows_per_s, "last_event": str(state.last_event_at)}
        totals = {"quarantined_rows": state.quarantined_rows, "position": dict(state.position)}
        return result._replace(metadata={**(result.metadata or {}), **new, **behind, **totals, **watch.metadata()})

    return raw


def _last_told(instance: dg.DagsterInstance, key: Key) -> int:
    """The version of the captured table's schema that its last event told of; 0 when there was none.

    Not what this run has landed: a lander may have been faster.
    """
    for record in instance.fetch_observations(dg.AssetKey(key.path), limit=1).records:
        observation = record.asset_observation
        if observation is not None and "schema_version" in observation.metadata:
            return int(str(observation.metadata["schema_version"].value))
    return 0


def _schema_event(key: Key, change: "SchemaChange") -> dg.AssetObservation:
    """That a captured table has other columns from here on."""
    return dg.AssetObservation(
        asset_key=key.path,
        description=change.refused or f"schema {change.version}: {'; '.join(change.changed)}",
        metadata={
            "schema_version": change.version,
            "source_position": change.position,
            "added_columns": ", ".join(change.added),
            "quarantined": change.refused is not None,
        },
    )
