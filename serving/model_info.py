"""What the API tells about a model: what serves, its features, where it comes from, its card.

The package answers for the version that serves; the registry adds parameters, metrics and who approved. None of it is
on the path of a prediction.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.settings import Settings
from catalog.spec import Model
from serving.gateway import Endpoint, Gateway
from serving.problems import UnknownPath

if TYPE_CHECKING:
    from ml.registry import Registry

__all__ = ["ModelInfo"]


class ModelInfo:
    """Answers about the models of a gateway."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def every(self) -> list[dict[str, Any]]:
        """Each declared model in short."""
        return [self._summary(model) for model in self._gateway.catalog.models]

    def one(self, name: str) -> dict[str, Any]:
        """Everything about one model. Raises UnknownModel."""
        slot = self._gateway.slot(name)
        model = self._gateway.catalog.model(name)
        return {
            **self._summary(model),
            "purpose": model.purpose,
            "limits": model.limits,
            "owner": model.owner,
            "problem": slot.problem,
            "failed_loads": slot.failures,
            **(self._deployed(name, slot.loaded) if slot.loaded else {}),
        }

    def card(self, name: str) -> str:
        """The card of the version that serves, as HTML. Raises UnknownModel, NotDeployed or UnknownPath."""
        endpoint = self._gateway.endpoint(name)
        page = _packaged(endpoint, "card.html")
        if page is None:
            raise UnknownPath(f"found no card.html in {endpoint.predictor.folder}: it was packaged without a card")
        return page

    def _summary(self, model: Model) -> dict[str, Any]:
        slot = self._gateway.slot(model.name)
        status = "not deployed" if slot.loaded is None else "stale" if slot.stale else "serving"
        return {
            "name": model.name,
            "description": model.description,
            "task": model.task,
            "version": slot.loaded.predictor.version if slot.loaded else None,
            "status": status,
            "url": f"/v1/models/{model.name}",
        }

    def _deployed(self, name: str, endpoint: Endpoint) -> dict[str, Any]:
        predictor = endpoint.predictor
        lineage, problem = self._lineage(name, predictor.version)
        return {
            "features": [
                {"name": f.name, "view": f.view, "type": f.dtype, "elapsed_since": f.elapsed_since}
                for f in endpoint.plan.features
            ],
            "feature_plan_digest": endpoint.plan.digest(),
            "package": {
                k: v for k, v in predictor.manifest.items() if k in ("kind", "algorithm", "provenance", "files")
            },
            "lineage": lineage,
            "lineage_problem": problem,
            "card": {"html": f"/v1/models/{name}/card", "markdown": _packaged(endpoint, "card.md")},
        }

    def _lineage(self, name: str, version: str) -> tuple[dict[str, Any] | None, str | None]:
        """The registry's account, or why there is none: a model goes on serving without its registry."""
        path = Path(self._settings.mlflow_uri.removeprefix("sqlite:///"))
        if not path.exists():
            return None, f"no registry at {path}"
        from mlflow.exceptions import MlflowException

        from ml.registry import RegistryError

        try:
            return asdict(self._registry.lineage(name, version)), None
        except (RegistryError, MlflowException) as error:
            return None, str(error)

    @cached_property
    def _registry(self) -> Registry:
        from ml.registry import Registry

        return Registry.open(self._settings)


def _packaged(endpoint: Endpoint, file: str) -> str | None:
    path = endpoint.predictor.folder / file
    return path.read_text(encoding="utf-8") if path.is_file() else None
