"""The model card: what a version is for, what it learned from, how good it is and where it is weak.

One list of sections, written as Markdown and as one self-contained HTML file (styles and pictures inside).
Nothing here computes a metric.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catalog.spec import METRICS, Model
from ml.evaluation import GateResult
from ml.training import Trained, TrainingSet

__all__ = ["Card", "Section", "describe_model", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, bullets, a table (header first) and pictures (file name, PNG bytes)."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Card:
    title: str
    sections: tuple[Section, ...]


def describe_model(
    model: Model,
    version: str,
    training_set: TrainingSet,
    trained: Trained,
    verdict: GateResult,
    provenance: Mapping[str, str],
    pictures: Mapping[str, bytes],
) -> Card:
    """The card of one version."""
    return Card(
        f"{model.name}, version {version}",
        (
            Section(
                "Purpose", (model.description, model.purpose), (f"Owner: {model.owner}", f"Domain: {model.domain}")
            ),
            _data(model, training_set, trained),
            Section("Features", bullets=model.features),
            Section("Algorithm", bullets=_algorithm(model)),
            _metrics(model, trained),
            _slices(model, trained),
            Section("Gate", ("Passed." if verdict.passed else "Not passed.",), tuple(verdict.describe().splitlines())),
            Section("Limits", bullets=model.limits),
            Section("Plots", pictures=tuple(pictures.items())),
            Section("Provenance", bullets=tuple(f"{name}: {value}" for name, value in provenance.items())),
        ),
    )


def _data(model: Model, training_set: TrainingSet, trained: Trained) -> Section:
    cutoffs = training_set.cutoffs
    outcome = "no row" if model.label.kind == "no_event" else f"the sum of {model.label.column}"
    labels = trained.evaluation.holdout.labels
    return Section(
        "Data",
        (
            f"Label: {outcome} of {model.label.table} in the {model.label.horizon_days} days from the cut-off on. "
            "Features are as known just before the cut-off.",
        ),
        (
            f"Training: {trained.evaluation.training_rows} rows at {len(cutoffs.training)} cut-offs from "
            f"{cutoffs.training[0]:%Y-%m-%d} to {cutoffs.training[-1]:%Y-%m-%d}",
            f"Hold-out: {trained.evaluation.rows} rows at {cutoffs.holdout:%Y-%m-%d}, mean label {labels.mean():.4g}",
            f"sha256 of the training set's content: {training_set.digest}",
        ),
    )


def _metrics(model: Model, trained: Trained) -> Section:
    names = METRICS[model.task]
    evaluation = trained.evaluation
    rows = [("this model", evaluation.metrics), *((f"baseline {n}", m) for n, m in evaluation.baselines.items())]
    table = (("", *names), *((who, *_cells(metrics, names)) for who, metrics in rows))
    return Section("Metrics on the hold-out", (f"The gate's metric is {model.gate.metric}.",), table=table)


def _slices(model: Model, trained: Trained) -> Section:
    names = METRICS[model.task]
    rows: list[tuple[str, ...]] = [("slice", "rows", "who", *names)]
    for found in trained.evaluation.slices:
        rows.append((found.name, str(found.rows), "this model", *_cells(found.metrics, names)))
        rows += [(found.name, "", f"baseline {n}", *_cells(m, names)) for n, m in found.baselines.items()]
    where = tuple(f"{s.name}: {s.where}" for s in model.gate.slices)
    return Section(
        "Metrics per slice", () if where else ("No slice is declared.",), where, tuple(rows[: len(rows) * bool(where)])
    )


def _cells(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{metrics[n]:.4g}" if n in metrics else "undefined" for n in names)


def _algorithm(model: Model) -> tuple[str, ...]:
    offset = () if model.offset is None else (f"learns the difference to {model.offset}",)
    return (model.algorithm, *offset, *(f"{k}: {v}" for k, v in model.parameters.items()))


def to_markdown(card: Card) -> str:
    """The card as Markdown; pictures are links to plots/<file>."""
    return "\n\n".join([f"# {card.title}", *(_section_markdown(s) for s in card.sections)]) + "\n"


def _section_markdown(section: Section) -> str:
    blocks = [f"## {section.heading}", *section.paragraphs]
    if section.bullets:
        blocks.append("\n".join(f"- {b}" for b in section.bullets))
    if section.table:
        header, *rows = [f"| {' | '.join(row)} |" for row in section.table]
        blocks.append("\n".join([header, "|" + "---|" * len(section.table[0]), *rows]))
    blocks += [f"![{name}](plots/{name})" for name, _ in section.pictures]
    return "\n\n".join(blocks)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h2{border-bottom:1px solid #d0d7de;margin-top:2rem}table{border-collapse:collapse}"
    "td,th{border:1px solid #d0d7de;padding:.25rem .6rem;text-align:right}td:first-child{text-align:left}"
    "img{max-width:100%}li{overflow-wrap:anywhere}"
)


def to_html(card: Card) -> str:
    """The card as one HTML file without anything outside it."""
    body = "".join(_section_html(s) for s in card.sections)
    title = html.escape(card.title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>"
    )


def _section_html(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>", *(f"<p>{html.escape(p)}</p>" for p in section.paragraphs)]
    if section.bullets:
        parts.append("<ul>" + "".join(f"<li>{html.escape(b)}</li>" for b in section.bullets) + "</ul>")
    if section.table:
        header, *rows = section.table
        parts.append(f"<table>{_row_html('th', header)}{''.join(_row_html('td', r) for r in rows)}</table>")
    for name, picture in section.pictures:
        data = base64.b64encode(picture).decode()
        parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    return "".join(parts)


def _row_html(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
