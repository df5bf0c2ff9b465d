"""Pictures of a model's hold-out as PNG bytes, by file name. Nothing here computes a figure that a gate uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np

from ml.encoding import Matrix
from ml.training import Trained

__all__ = ["draw"]

Draw = Callable[..., None]


def draw(task: str, trained: Trained) -> dict[str, bytes]:
    """ROC and calibration of a binary model, predicted against actual and residuals of a regression; importance."""
    holdout = trained.evaluation.holdout
    panels: dict[str, Draw] = (
        {"roc.png": _roc, "calibration.png": _calibration}
        if task == "binary"
        else {"predicted_actual.png": _predicted_actual, "residuals.png": _residuals}
    )
    pictures = {n: _png(partial(p, labels=holdout.labels, scores=holdout.scores)) for n, p in panels.items()}
    pictures["importance.png"] = _png(partial(_importance, names=trained.encoding.names, shares=trained.importance))
    return pictures


def _png(panel: Callable[[Any], None]) -> bytes:
    """A Figure of its own, without pyplot: pyplot's global state is not safe in threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), dpi=90, layout="tight")
    FigureCanvasAgg(figure)
    panel(figure.add_subplot())
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _roc(ax: Any, labels: Matrix, scores: Matrix) -> None:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(labels, scores)
    ax.plot(false_positive, true_positive)
    ax.plot([0, 1], [0, 1], linestyle=":", color="grey")
    ax.set(title="ROC on the hold-out", xlabel="false positive rate", ylabel="true positive rate")


def _calibration(ax: Any, labels: Matrix, scores: Matrix) -> None:
    """Ten groups of equal size by score."""
    groups = np.array_split(np.argsort(scores, kind="stable"), 10)
    predicted = [scores[g].mean() for g in groups if len(g)]
    ax.plot(predicted, [labels[g].mean() for g in groups if len(g)], marker="o")
    ax.plot([0, 1], [0, 1], linestyle=":", color="grey")
    ax.set(title="Calibration on the hold-out", xlabel="mean predicted probability", ylabel="share that happened")


def _predicted_actual(ax: Any, labels: Matrix, scores: Matrix) -> None:
    ax.scatter(scores, labels, s=4, alpha=0.4)
    high = float(max(scores.max(), labels.max(), 1))
    ax.plot([0, high], [0, high], linestyle=":", color="grey")
    # Amounts span five orders of magnitude and include zero.
    ax.set_xscale("symlog")
    ax.set_yscale("symlog")
    ax.set(title="Hold-out, logarithmic from 1 on", xlabel="predicted", ylabel="actual")


def _residuals(ax: Any, labels: Matrix, scores: Matrix) -> None:
    errors = scores - labels
    low, high = np.quantile(errors, [0.01, 0.99])
    ax.hist(errors.clip(low, high), bins=50)
    ax.set(title="Predicted - actual (ends: beyond 1% and 99%)", xlabel="error", ylabel="rows")


def _importance(ax: Any, names: tuple[str, ...], shares: Matrix) -> None:
    order = np.argsort(shares)
    ax.barh([names[i] for i in order], shares[order])
    ax.set(title="Share of importance")
