"""The model registry: versions with their evidence, aliases `candidate` and `champion`, who promoted what and when.

MLflow keeps it (SQLite by default). A version is registered only with a proven package and a kept contract; it becomes
champion only through the gate. A version's tags say who first promoted it and why; what happened to the alias since is
in the model's history (ml/promotions.py). What a run logs is in ml/tracking.py; what is served is decided in
ml/deployment.py.

Errors: RegistryError
          ├─ NotRegistered        no such model, version or alias
          ├─ PromotionRefused
          │    ├─ GateFailed      the version did not pass its gate
          │    └─ SameActor       who approves is who trained
          └─ NothingToRollBack    no champion came before
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from catalog.settings import Settings
from catalog.spec import Model
from ml.cards import describe_model, to_html, to_markdown
from ml.contract import check_contract
from ml.deployment import Deployment, deploy, seal, write_files
from ml.encoding import EncodingError
from ml.evaluation import ChampionScore, GateResult, evaluate_metrics, gate
from ml.feature_plan import FeaturePlan
from ml.lineage import Lineage, trace
from ml.plots import draw
from ml.predictor import load_package, manifest_digest, verify_golden
from ml.promotions import Action, Promotion, ended_by_a_person, succession
from ml.tracking import Context, facts_of, log_facts, open_client, start_run, write_mlmodel
from ml.training import Trained, TrainingSet

__all__ = [
    "AUTO",
    "GateFailed",
    "NotRegistered",
    "NothingToRollBack",
    "Promotion",
    "PromotionRefused",
    "Registered",
    "Registry",
    "RegistryError",
    "SameActor",
]

AUTO = "policy:auto"
_HISTORY = "promotion."


class RegistryError(RuntimeError):
    """The registry refused."""


class NotRegistered(RegistryError):
    """No such model, version or alias."""


class PromotionRefused(RegistryError):
    """The version may not become champion."""


class GateFailed(PromotionRefused):
    """The version did not pass its gate."""


class SameActor(PromotionRefused):
    """Who approves is who trained."""


class NothingToRollBack(RegistryError):
    """No champion came before the present one."""


@dataclass(frozen=True)
class Registered:
    """A version that was just registered as candidate, with the gate's verdict and its card in Markdown."""

    model: str
    version: str
    run_id: str
    package_digest: str
    gate: GateResult
    card: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    holdout_rows: int


@dataclass(frozen=True)
class Registry:
    """Versions of every model. `artifacts` is where new experiments keep their files."""

    uri: str
    artifacts: Path

    @classmethod
    def open(cls, settings: Settings) -> Registry:
        return cls(settings.mlflow_uri, settings.artifacts_dir)

    @cached_property
    def _client(self) -> Any:
        return open_client(self.uri)

    def register_candidate(
        self, model: Model, training_set: TrainingSet, trained: Trained, plan: FeaturePlan, context: Context
    ) -> Registered:
        """Check the contract, judge against the present champion, log the run, register, point `candidate` at it.

        What was registered before, from the same declaration and data and with the same package, is judged again and
        reused. Raises ContractError, NotExportable or PackageError before anything is registered.
        """
        signature = check_contract(model, plan, training_set.table.schema, training_set.features)
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "package"
            write_files(package, model, trained, plan)
            seal(package, model, "unregistered", trained.fitted.kind, {})
            content = _content_digest(model, training_set, package)
            if (twin := self._twin(model.name, content)) is not None:
                return self._judge_again(model, training_set, trained, twin)
            champion = self.score_champion(model, training_set)
            verdict = gate(model, trained.evaluation, champion)
            run = start_run(self._client, model, self.artifacts)
            run_id = run.info.run_id
            facts = facts_of(model, training_set, signature.digest(), context) | _judged(verdict)
            try:
                log_facts(self._client, run_id, model, training_set, trained.evaluation, champion, facts)
                write_mlmodel(package, run_id, trained, signature)
                version = self._create_version(model, f"{run.info.artifact_uri}/package", run_id)
                pictures = draw(model.task, trained)
                provenance = {"mlflow_run_id": run_id, **{k: facts[k] for k in _PROVENANCE}}
                card = describe_model(model, version, training_set, trained, verdict, provenance, pictures)
                _write_card(package, to_markdown(card), to_html(card), pictures, Path(scratch))
                seal(package, model, version, trained.fitted.kind, provenance)
                digest = manifest_digest(package)
                self._client.log_artifacts(run_id, str(package), "package")
                self._client.log_artifacts(run_id, str(Path(scratch) / "card"), "card")
                self._tag(model.name, version, facts | {"package_digest": digest, "content_digest": content})
                self._client.set_registered_model_alias(model.name, "candidate", version)
            except BaseException:
                self._client.set_terminated(run_id, "FAILED")
                raise
            self._client.set_terminated(run_id, "FINISHED")
        return _registered(model, version, run_id, digest, verdict, to_markdown(card), trained)

    def _twin(self, model: str, content: str) -> Any | None:
        """The version with this very content: the clock may have gone back, or the same data been trained on again."""
        return next((v for v in self._sealed(model) if v.tags.get("content_digest") == content), None)

    def _judge_again(self, model: Model, training_set: TrainingSet, trained: Trained, twin: Any) -> Registered:
        version = str(twin.version)
        itself = self.alias(model.name, "champion") == version
        verdict = gate(model, trained.evaluation, None if itself else self.score_champion(model, training_set))
        self._tag(model.name, version, _judged(verdict))
        self._client.set_registered_model_alias(model.name, "candidate", version)
        with tempfile.TemporaryDirectory() as scratch:
            folder, digest = self.fetch(model.name, version, Path(scratch))
            card = (folder / "card.md").read_text(encoding="utf-8")
        return _registered(model, version, twin.run_id, digest, verdict, card, trained)

    def _create_version(self, model: Model, source: str, run_id: str) -> str:
        if not self._known(model.name):
            self._client.create_registered_model(model.name, description=model.description)
        return str(self._client.create_model_version(model.name, source=source, run_id=run_id).version)

    def score_champion(self, model: Model, training_set: TrainingSet) -> ChampionScore | None:
        """The champion on this very hold-out; None when there is none."""
        version = self.alias(model.name, "champion")
        if version is None:
            return None
        # Training labels end where a version's own hold-out begins. A later one: the clock has gone back since.
        own = self._client.get_run(self._version(model.name, version).run_id).data.params["holdout_cutoff"]
        if own > f"{training_set.cutoffs.holdout:%Y-%m-%d}":
            return ChampionScore(version, None, f"it may have learned from this hold-out, its own is later ({own})")
        with tempfile.TemporaryDirectory() as scratch:
            predictor = load_package(*self.fetch(model.name, version, Path(scratch)))
            held = training_set.holdout
            try:
                scores = predictor.score_table(held)
            except EncodingError as error:
                return ChampionScore(version, None, str(error))
        labels = held["label"].to_numpy().astype(float)
        return ChampionScore(version, evaluate_metrics(model.task, labels, scores))

    def fetch(self, model: str, version: str, into: Path) -> tuple[Path, str]:
        """Copy a version's package below `into`; returns its folder and the digest that the registry pinned."""
        found = self._version(model, version)
        into.mkdir(parents=True, exist_ok=True)
        folder = self._client.download_artifacts(found.run_id, "package", str(into))
        return Path(folder), found.tags["package_digest"]

    def deploy_champion(self, model: str, endpoints: Path) -> Deployment:
        """Package in, verified, switched. Raises NotRegistered without a champion, PackageError on a damaged one."""
        with tempfile.TemporaryDirectory() as scratch:
            return deploy(*self.fetch(model, self.champion(model), Path(scratch)), endpoints)

    def promote_by_policy(self, model: Model, version: str, now: datetime) -> Promotion | None:
        """Make an `auto` model's version champion when its gate passed; None when the policy says to wait.

        What a person replaced or rolled back is not promoted again by itself: they had a reason.
        """
        tags = self._version(model.name, version).tags
        waits = model.promotion.policy != "auto" or tags["gate"] != "passed" or tags["needs_approver"] == "true"
        if waits or self._reigns(model.name, version) or ended_by_a_person(self.history(model.name), version):
            return None
        return self._promote(model.name, version, "auto", AUTO, "passed its gate", now)

    def approve(self, model: Model, version: str, by: str, note: str, now: datetime) -> Promotion:
        """Make a version champion on somebody's word, once its package has proved to be sound.

        Raises NotRegistered, GateFailed, SameActor or PromotionRefused; PackageError on a damaged package.
        """
        tags = self._version(model.name, version).tags
        if tags["gate"] != "passed":
            raise GateFailed(
                f"{model.name} {version} did not pass its gate, so nobody can approve it:\n{tags['gate_report']}"
            )
        _expect_words(model.name, version, by, note)
        if self._reigns(model.name, version):
            raise PromotionRefused(f"{model.name} {version} is the champion already")
        if model.promotion.approver_must_differ and _same_actor(by, tags["trained_by"]):
            raise SameActor(
                f"{model.name} {version} was trained by {tags['trained_by']}, who cannot approve it too: somebody else "
                "must (promotion.approver_must_differ in the model's YAML)"
            )
        self._prove(model.name, version)
        return self._promote(model.name, version, "approve", by, note, now)

    def rollback(self, model: str, by: str, note: str, now: datetime) -> Promotion:
        """Return to the champion before the present one, once its package has proved to be sound.

        Raises NotRegistered, NothingToRollBack or PromotionRefused; PackageError on a damaged package.
        """
        champion, reign = self.champion(model), succession(self.history(model))
        if len(reign) < 2:
            raise NothingToRollBack(f"{model}: version {champion} is the first champion, none came before it")
        _expect_words(model, reign[-2], by, note)
        self._prove(model, reign[-2])
        return self._promote(model, reign[-2], "rollback", by, note, now)

    def _prove(self, model: str, version: str) -> None:
        """Raises PackageError: an alias must not point at what cannot be served."""
        with tempfile.TemporaryDirectory() as scratch:
            verify_golden(load_package(*self.fetch(model, version, Path(scratch))))

    def _reigns(self, model: str, version: str) -> bool:
        """Whether the version is champion, by the alias and by the history alike."""
        entries = self.history(model)
        return bool(entries) and entries[-1].version == version == self.alias(model, "champion")

    def _promote(self, model: str, version: str, action: Action, by: str, note: str, now: datetime) -> Promotion:
        """Alias first, entry last: who dies in between is repeated, and finds the work of the first attempt done."""
        history = self.history(model)
        previous = history[-1].version if history else None
        promotion = Promotion(model, version, previous, action, by, note, now.isoformat())
        self._client.set_registered_model_alias(model, "champion", version)
        # A key of its own for each entry: two writers at once lose none.
        key = f"{_HISTORY}{len(history):06d}.{uuid.uuid4().hex[:8]}"
        self._client.set_registered_model_tag(model, key, json.dumps(asdict(promotion)))
        tags = {} if action == "rollback" else {"promoted_by": by, "promoted_at": promotion.at, "note": note}
        self._tag_once(model, version, tags | ({"approved_by": by} if action == "approve" else {}))
        return promotion

    def history(self, model: str) -> tuple[Promotion, ...]:
        """Every promotion and rollback, oldest first. Raises NotRegistered."""
        tags = self._registered(model).tags
        return tuple(Promotion(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_HISTORY))

    def versions(self, model: str) -> tuple[str, ...]:
        """Every registered version, oldest first; empty for a model that was never trained."""
        return tuple(sorted((str(v.version) for v in self._sealed(model)), key=int))

    def _sealed(self, model: str) -> list[Any]:
        """Versions whose registration was completed."""
        found = self._client.search_model_versions(f"name = '{model}'")
        return [version for version in found if "package_digest" in version.tags]

    def alias(self, model: str, alias: Literal["candidate", "champion"]) -> str | None:
        """The version an alias points at; None when there is none."""
        if not self._known(model):
            return None
        found = self._registered(model).aliases.get(alias)
        return None if found is None else str(found)

    def champion(self, model: str) -> str:
        """The champion's version. Raises NotRegistered."""
        version = self.alias(model, "champion")
        if version is None:
            raise NotRegistered(f"{model} has no champion: no version has passed its gate and been promoted yet")
        return version

    def lineage(self, model: str, version: str | None = None) -> Lineage:
        """Trace a version (the champion, else the candidate, when not given). Raises NotRegistered."""
        version = version or self.alias(model, "champion") or self.alias(model, "candidate")
        if version is None:
            raise NotRegistered(f"{model}: no version is registered; run `headwater run` first")
        found = self._version(model, version)
        run = self._client.get_run(found.run_id)
        aliases = self._registered(model).aliases
        named = tuple(sorted(a for a, v in aliases.items() if str(v) == version))
        return trace(found, run, named, self.history(model))

    def _version(self, model: str, version: str) -> Any:
        if version not in self.versions(model):
            there = ", ".join(self.versions(model)) or "none"
            raise NotRegistered(f"{model} has no version {version!r}; there are: {there}")
        return self._client.get_model_version(model, version)

    def _registered(self, model: str) -> Any:
        if not self._known(model):
            raise NotRegistered(f"{model}: no version is registered; run `headwater run` first")
        return self._client.get_registered_model(model)

    def _known(self, model: str) -> bool:
        return bool(self._client.search_registered_models(f"name = '{model}'"))

    def _tag(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(model, version, key, value)

    def _tag_once(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Tags that keep their first value."""
        there = self._version(model, version).tags
        self._tag(model, version, {key: value for key, value in tags.items() if key not in there})


_PROVENANCE = ("data_digest", "git_commit", "git_dirty", "dagster_run_id", "trained_by", "trained_at")


def _registered(
    model: Model, version: str, run_id: str, digest: str, verdict: GateResult, card: str, trained: Trained
) -> Registered:
    found = trained.evaluation
    return Registered(model.name, version, run_id, digest, verdict, card, found.metrics, found.baselines, found.rows)


def _content_digest(model: Model, training_set: TrainingSet, package: Path) -> str:
    """sha256 of what makes a version what it is: its declaration, its data, and its package before it has a number."""
    parts = [model.model_dump(mode="json"), training_set.digest, manifest_digest(package)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _judged(verdict: GateResult) -> dict[str, str]:
    return {
        "gate": "passed" if verdict.passed else "failed",
        "gate_report": verdict.describe(),
        "needs_approver": str(verdict.needs_approver).lower(),
    }


def _write_card(package: Path, markdown: str, page: str, pictures: Mapping[str, bytes], scratch: Path) -> None:
    """The card goes into the package, which serving shows, and with its plots beside it into the run."""
    plots = scratch / "card" / "plots"
    plots.mkdir(parents=True)
    for folder in (package, scratch / "card"):
        (folder / "card.md").write_text(markdown, encoding="utf-8")
        (folder / "card.html").write_text(page, encoding="utf-8")
    for name, picture in pictures.items():
        (plots / name).write_bytes(picture)


def _same_actor(one: str, other: str) -> bool:
    """Case and spaces do not make another person."""
    return one.strip().casefold() == other.strip().casefold()


def _expect_words(model: str, version: str, by: str, note: str) -> None:
    if not by.strip() or not note.strip():
        raise PromotionRefused(f"{model} {version}: found by {by!r}, note {note!r}; neither may be empty")
