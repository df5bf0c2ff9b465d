"""Registry and deployment on a real MLflow over SQLite: evidence, gate, approval, rollback, packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from models_shop import Shop, model_named, plan_for, small_shop

from catalog.spec import Model
from ml.algorithms import NotExportable
from ml.contract import ContractError
from ml.deployment import roll_back
from ml.feature_plan import FeaturePlan
from ml.predictor import (
    CorruptPackage,
    GoldenMismatch,
    MissingPackage,
    current_folder,
    load_package,
    verify_golden,
)
from ml.registry import (
    AUTO,
    GateFailed,
    NothingToRollBack,
    NotRegistered,
    PromotionRefused,
    Registered,
    Registry,
    SameActor,
)
from ml.scoring import batch_scores
from ml.tracking import CodeState, Context, code_state, open_client
from ml.training import Trained, TrainingSet, build_training_set, train

CONTEXT = Context("kim", "run-1", CodeState("abc123", True))
NOW = datetime(2021, 2, 4, 9)


@dataclass(frozen=True)
class Ready:
    """A model that is trained and waits to be registered."""

    model: Model
    training_set: TrainingSet
    trained: Trained
    plan: FeaturePlan
    context: Context = CONTEXT

    def register(self, registry: Registry, **changes: object) -> Registered:
        model = Model.model_validate(self.model.model_dump() | changes)
        return registry.register_candidate(model, self.training_set, self.trained, self.plan, self.context)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return small_shop(tmp_path_factory.mktemp("lake"))


def ready(shop: Shop, name: str) -> Ready:
    model = model_named(name, gate=model_named(name).gate.model_dump() | {"slices": model_named(name).gate.slices[:2]})
    training_set = build_training_set(model, shop.lake, shop.retrieve, shop.now)
    return Ready(model, training_set, train(model, training_set), plan_for(model))


@pytest.fixture(scope="module")
def churn(shop: Shop) -> Ready:
    return ready(shop, "churn")


@pytest.fixture(scope="module")
def clv(shop: Shop) -> Ready:
    return ready(shop, "clv")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations cost 2 CPU-s."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path) -> Registry:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts")


APPROVE = {"promotion": {"policy": "approve", "approver_must_differ": True}}


def test_a_run_keeps_all_its_evidence(churn: Ready, registry: Registry) -> None:
    done = churn.register(registry)
    client = open_client(registry.uri)
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["holdout/roc_auc"] == churn.trained.evaluation.metrics["roc_auc"]
    assert {"baseline/majority/roc_auc", "baseline/recency_rule/roc_auc", "rows/holdout"} <= set(run.data.metrics)
    assert run.data.params["parameters.num_leaves"] == str(churn.model.parameters["num_leaves"])
    assert run.data.tags["data_digest"] == churn.training_set.digest
    assert json.loads(run.data.tags["features"]) == list(churn.model.features)
    assert (run.data.tags["git_commit"], run.data.tags["git_dirty"]) == ("abc123", "true")
    assert run.data.tags["dagster_run_id"] == "run-1"
    plots = {Path(f.path).name for f in client.list_artifacts(done.run_id, "card/plots")}
    assert plots == {"roc.png", "calibration.png", "importance.png"}
    version = client.get_model_version_by_alias("churn", "candidate")
    assert str(version.version) == done.version == "1"


def test_mlflow_shows_the_signature(churn: Ready, registry: Registry, tmp_path: Path) -> None:
    from mlflow.models import Model as MLmodel

    done = churn.register(registry)
    folder, _ = registry.fetch("churn", done.version, tmp_path)
    signature = MLmodel.load(str(folder)).signature
    assert tuple(signature.inputs.input_names()) == churn.training_set.features
    assert [t.name for t in signature.inputs.input_types()][-1] == "string"
    assert "lightgbm==" in (folder / "requirements.txt").read_text()
    assert not [f.name for f in folder.iterdir() if f.suffix in {".pkl", ".pickle", ".joblib"}]


def test_the_card_says_what_it_must(churn: Ready, clv: Ready, registry: Registry, tmp_path: Path) -> None:
    for each in (churn, clv):
        done = each.register(registry)
        folder, _ = registry.fetch(each.model.name, done.version, tmp_path / each.model.name)
        page = (folder / "card.html").read_text()
        for needed in (
            each.model.purpose,
            each.model.owner,
            *each.model.limits,
            *each.model.features,
            *each.model.baselines,
            each.training_set.digest,
            *(s.name for s in each.model.gate.slices),
        ):
            assert needed in done.card
            assert needed.replace("'", "&#x27;") in page
        assert page.count("data:image/png;base64,") == 3
        assert "http" not in page


@pytest.mark.parametrize("change", ["type", "order", "dropped"])
def test_a_broken_contract_registers_nothing(churn: Ready, registry: Registry, change: str) -> None:
    first, second, *rest = churn.plan.features
    features = {
        "type": (replace(first, dtype="float64"), second, *rest),
        "order": (second, first, *rest),
        "dropped": (second, *rest),
    }[change]
    broken = replace(churn, plan=replace(churn.plan, features=features))
    with pytest.raises(ContractError, match=f"'{first.name}'"):
        broken.register(registry)
    assert registry.versions("churn") == ()
    assert registry.alias("churn", "candidate") is None


def test_what_has_no_onnx_form_registers_nothing(churn: Ready, registry: Registry) -> None:
    class Unknown:
        """Stands for a fitted estimator of somebody's own."""

        kind, preparation = "onnx", None

        def save(self, file: Path) -> None:
            raise NotExportable("no ONNX form")

    broken = replace(churn, trained=replace(churn.trained, fitted=Unknown()))  # type: ignore[arg-type]
    with pytest.raises(NotExportable):
        broken.register(registry)
    assert registry.versions("churn") == ()


def test_scores_that_the_package_does_not_reproduce_register_nothing(churn: Ready, registry: Registry) -> None:
    holdout = churn.trained.evaluation.holdout
    evaluation = replace(churn.trained.evaluation, holdout=replace(holdout, scores=holdout.scores + 1e-6))
    with pytest.raises(GoldenMismatch, match="off training's score"):
        replace(churn, trained=replace(churn.trained, evaluation=evaluation)).register(registry)
    assert registry.versions("churn") == ()


def test_auto_promotes_once_and_equal_successors_pass(churn: Ready, clv: Ready, registry: Registry) -> None:
    for each in (churn, clv):
        name = each.model.name
        first = each.register(registry)
        assert first.gate.passed, first.gate.describe()
        promotion = registry.promote_by_policy(each.model, first.version, NOW)
        assert promotion is not None
        assert (promotion.by, promotion.previous, promotion.at) == (AUTO, None, NOW.isoformat())
        assert registry.promote_by_policy(each.model, first.version, NOW) is None
        second = each.register(registry, seed=8)
        assert "champion 1 has" in second.gate.describe()
        assert second.gate.passed, second.gate.describe()
        assert registry.champion(name) == "1"


def test_a_failed_gate_promotes_nothing(churn: Ready, registry: Registry) -> None:
    gate = churn.model.gate.model_dump() | {"minimum": 0.9999}
    done = churn.register(registry, gate=gate)
    assert not done.gate.passed
    assert registry.promote_by_policy(churn.model, done.version, NOW) is None
    with pytest.raises(GateFailed, match=r"needed is at least 1|needed is at least 0\.9999"):
        registry.approve(churn.model, done.version, "ada", "please", NOW)
    with pytest.raises(NotRegistered, match="no champion"):
        registry.champion("churn")


def test_who_trained_cannot_approve(churn: Ready, registry: Registry) -> None:
    done = churn.register(registry, **APPROVE)
    model = Model.model_validate(churn.model.model_dump() | APPROVE)
    assert registry.promote_by_policy(model, done.version, NOW) is None
    for same in ("kim", "Kim", " kim"):
        with pytest.raises(SameActor, match="was trained by"):
            registry.approve(model, done.version, same, "looks good", NOW)
    for by, note in (("", "looks good"), ("ada", " ")):
        with pytest.raises(PromotionRefused, match="may be empty"):
            registry.approve(model, done.version, by, note, NOW)
    assert registry.approve(model, done.version, "ada", "looks good", NOW).by == "ada"
    found = registry.lineage("churn")
    assert (found.approved_by, found.promoted_by, found.note, found.trained_by) == ("ada", "ada", "looks good", "kim")
    relaxed = Model.model_validate(
        churn.model.model_dump() | {"promotion": {"policy": "approve", "approver_must_differ": False}}
    )
    assert registry.approve(relaxed, churn.register(registry, seed=8).version, "kim", "mine", NOW).version == "2"
    with pytest.raises(PromotionRefused, match="champion already"):
        registry.approve(relaxed, "2", "ada", "again", NOW)


def test_rollback_returns_to_the_champion_before(churn: Ready, registry: Registry) -> None:
    for at in range(3):
        done = churn.register(registry, seed=at)
        registry.promote_by_policy(churn.model, done.version, NOW + timedelta(days=at))
    assert registry.champion("churn") == "3"
    back = registry.rollback("churn", "ada", "complaints", NOW + timedelta(days=4))
    assert (back.version, back.previous, back.action) == ("2", "3", "rollback")
    assert registry.promote_by_policy(churn.model, "3", NOW) is None, "rolled back for a reason"
    assert registry.rollback("churn", "ada", "still", NOW + timedelta(days=5)).version == "1"
    with pytest.raises(NothingToRollBack, match="first champion"):
        registry.rollback("churn", "ada", "more", NOW)
    history = [(p.action, p.previous, p.version, p.by) for p in registry.history("churn")]
    assert history == [
        ("auto", None, "1", AUTO),
        ("auto", "1", "2", AUTO),
        ("auto", "2", "3", AUTO),
        ("rollback", "3", "2", "ada"),
        ("rollback", "2", "1", "ada"),
    ]


def test_a_version_keeps_who_first_promoted_it_and_its_history_says_the_rest(churn: Ready, registry: Registry) -> None:
    relaxed = Model.model_validate(churn.model.model_dump() | APPROVE)
    for version, by, note in (("1", "ada", "the first"), ("2", "bob", "better abroad")):
        assert churn.register(registry, **APPROVE, seed=int(version)).version == version
        registry.approve(relaxed, version, by, note, NOW)
    later = NOW + timedelta(days=3)
    registry.rollback("churn", "eve", "complaints", later)
    tags = open_client(registry.uri).get_model_version("churn", "1").tags
    assert {name: tags[name] for name in ("promoted_by", "promoted_at", "approved_by", "note")} == {
        "promoted_by": "ada",
        "promoted_at": NOW.isoformat(),
        "approved_by": "ada",
        "note": "the first",
    }
    first, second = registry.lineage("churn", "1"), registry.lineage("churn", "2")
    assert (first.promoted_by, first.note, second.note) == ("ada", "the first", "better abroad")
    assert [(p.action, p.version, p.by, p.note) for p in second.history] == [
        ("approve", "2", "bob", "better abroad"),
        ("rollback", "1", "eve", "complaints"),
    ]
    assert [" ".join(line.split()) for line in first.describe().splitlines()[-4:-1]] == [
        f"history {NOW.isoformat()} approve: 1; by ada: the first",
        f"{NOW.isoformat()} approve: 2 for 1; by bob: better abroad",
        f"{later.isoformat()} rollback: 1 for 2; by eve: complaints",
    ]
    assert json.loads(first.to_json())["history"][-1]["note"] == "complaints"
    registry.approve(relaxed, "2", "kay", "mended", later)
    again = registry.lineage("churn", "2")
    assert (again.approved_by, again.note, again.history[-1].by) == ("bob", "better abroad", "kay")


def test_a_retraining_says_how_much_of_its_drift_it_could_see(churn: Ready, registry: Registry) -> None:
    """Labels take 90 days. The drift began 30 days before the hold-out's window ended; then as long before it began."""
    holdout, newest = churn.training_set.cutoffs.holdout, churn.training_set.cutoffs.training[-1]
    horizon = timedelta(days=90)
    for since, shares in (
        (holdout + horizon - timedelta(days=30), (0.33, 0.0)),
        (holdout, (1.0, 0.0)),
        (newest + timedelta(days=45), (1.0, 0.5)),
        (newest - timedelta(days=1), (1.0, 1.0)),
    ):
        context = replace(CONTEXT, cause_id=f"churn-{since:%Y%m%d}", drifted_from=since)
        done = replace(churn, context=context).register(registry, seed=since.timetuple().tm_yday)
        found = registry.lineage("churn", done.version)
        assert (found.cause_id, found.drifted_from) == (context.cause_id, since.isoformat())
        assert (found.drift_in_holdout, found.drift_in_training) == shares
    assert "label windows in the drift: 100% of the hold-out's, 100% of the newest" in found.describe()
    plain = registry.lineage("churn", churn.register(registry).version)
    assert (plain.cause_id, plain.drift_in_holdout) == (None, None)
    assert "retrained for" not in plain.describe()


@pytest.mark.parametrize(("by", "note"), [(" ", "complaints"), ("eve", "")])
def test_a_rollback_needs_somebody_and_a_reason(churn: Ready, registry: Registry, by: str, note: str) -> None:
    promoted(churn, registry)
    promoted(churn, registry, seed=8)
    with pytest.raises(PromotionRefused, match="neither may be empty"):
        registry.rollback("churn", by, note, NOW)
    assert registry.champion("churn") == "2"


def test_what_was_registered_before_is_judged_again_and_reused(churn: Ready, registry: Registry) -> None:
    first, other = churn.register(registry), churn.register(registry, seed=8)
    registry.promote_by_policy(churn.model, other.version, NOW)
    again = churn.register(registry)
    assert (again.version, again.run_id, again.package_digest) == ("1", first.run_id, first.package_digest)
    assert again.card == first.card
    assert "champion 2 has" in again.gate.describe()
    assert registry.versions("churn") == ("1", "2")
    assert registry.alias("churn", "candidate") == "1"
    assert registry.lineage("churn", "1").gate_report == again.gate.describe()


def test_a_reused_version_returns_unless_a_person_ended_its_reign(churn: Ready, registry: Registry) -> None:
    for seed in (1, 2):
        promoted(churn, registry, seed)
    churn.register(registry, seed=1)
    returned = registry.promote_by_policy(churn.model, "1", NOW)
    assert returned is not None
    assert (returned.version, returned.previous) == ("1", "2")
    assert registry.promote_by_policy(churn.model, "1", NOW) is None, "it is the champion"
    registry.rollback("churn", "eve", "complaints", NOW)
    assert registry.champion("churn") == "2"
    churn.register(registry, seed=1)
    assert registry.promote_by_policy(churn.model, "1", NOW) is None, "rolled back for a reason"


def test_the_champion_that_is_registered_again_is_not_compared_with_itself(churn: Ready, registry: Registry) -> None:
    demanding = {"gate": churn.model.gate.model_dump() | {"min_improvement": 0.01}}
    assert churn.register(registry, **demanding).gate.passed
    registry.promote_by_policy(churn.model, "1", NOW)
    again = churn.register(registry, **demanding)
    assert (again.version, again.gate.passed) == ("1", True), again.gate.describe()


def test_a_champion_that_has_seen_the_hold_out_is_not_compared(churn: Ready, shop: Shop, registry: Registry) -> None:
    """The clock went back 40 days: what was promoted later has learned from labels after this cut-off."""
    promoted(churn, registry)
    earlier = build_training_set(churn.model, shop.lake, shop.retrieve, shop.now - timedelta(days=40))
    done = replace(churn, training_set=earlier, trained=train(churn.model, earlier)).register(registry)
    assert "not judged: champion 1 cannot be scored here: it may have learned from this hold-out" in (
        done.gate.describe()
    )
    assert done.gate.needs_approver
    assert registry.promote_by_policy(churn.model, done.version, NOW) is None


@pytest.mark.parametrize("action", ["approve", "rollback"])
def test_nobody_becomes_champion_with_a_damaged_package(churn: Ready, registry: Registry, action: str) -> None:
    for seed in (1, 2):
        promoted(churn, registry, seed)
    waiting = churn.register(registry, seed=3).version
    damaged = waiting if action == "approve" else "1"
    run_id = registry.lineage("churn", damaged).run_id
    next((registry.artifacts / "churn").glob(f"{run_id}/**/plan.json")).write_text("{}")
    decide = {
        "approve": lambda: registry.approve(churn.model, waiting, "ada", "looks good", NOW),
        "rollback": lambda: registry.rollback("churn", "ada", "complaints", NOW),
    }
    with pytest.raises(CorruptPackage, match=r"plan\.json: found sha256"):
        decide[action]()
    assert registry.champion("churn") == "2"
    assert len(registry.history("churn")) == 2


def test_a_promotion_that_was_cut_short_is_completed_when_it_is_repeated(churn: Ready, registry: Registry) -> None:
    """The alias is moved first: a process that dies then has written no entry."""
    client = open_client(registry.uri)
    for seed in (1, 2, 3):
        churn.register(registry, seed=seed)
    registry.promote_by_policy(churn.model, "1", NOW)
    client.set_registered_model_alias("churn", "champion", "2")
    completed = registry.promote_by_policy(churn.model, "2", NOW)
    assert completed is not None
    assert completed.previous == "1"
    client.set_registered_model_alias("churn", "champion", "3")
    assert registry.approve(churn.model, "3", "ada", "looks good", NOW).previous == "2"
    client.set_registered_model_alias("churn", "champion", "2")
    back = registry.rollback("churn", "eve", "complaints", NOW)
    assert (back.version, back.previous, registry.champion("churn")) == ("2", "3", "2")


def test_unknown_names_are_refused(churn: Ready, registry: Registry) -> None:
    with pytest.raises(NotRegistered, match="run `headwater run` first"):
        registry.lineage("churn")
    churn.register(registry)
    with pytest.raises(NotRegistered, match="no version '9'; there are: 1"):
        registry.approve(churn.model, "9", "ada", "", NOW)


def test_lineage_reads_as_text_and_json(churn: Ready, registry: Registry) -> None:
    done = churn.register(registry)
    registry.promote_by_policy(churn.model, done.version, NOW)
    found = registry.lineage("churn")
    assert json.loads(found.to_json())["data_digest"] == churn.training_set.digest
    text = found.describe()
    order = [text.index(word) for word in ("version", "run ", "data digest", "code commit", "features", "parameters")]
    assert order == sorted(order)
    assert found.metrics == pytest.approx(dict(churn.trained.evaluation.metrics))
    assert found.baselines["recency_rule"] == pytest.approx(dict(churn.trained.evaluation.baselines["recency_rule"]))
    assert found.aliases == ("candidate", "champion")


def promoted(ready: Ready, registry: Registry, seed: int = 7) -> str:
    version = ready.register(registry, seed=seed).version
    registry.promote_by_policy(ready.model, version, NOW)
    return version


@pytest.mark.parametrize("name", ["churn", "clv"])
def test_what_is_deployed_scores_as_in_training(
    name: str, registry: Registry, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    each: Ready = request.getfixturevalue(name)
    promoted(each, registry)
    done = registry.deploy_champion(name, tmp_path / "endpoints")
    assert (done.version, done.previous, done.golden_rows, done.switched) == ("1", None, 64, True)
    predictor = load_package(current_folder(tmp_path / "endpoints", name))
    holdout = each.trained.evaluation.holdout
    scores = predictor.score_table(holdout.table)
    np.testing.assert_allclose(scores, holdout.scores, atol=1e-5 * max(1.0, holdout.scores.max()))
    rows = [[holdout.table[n][i].as_py() for n in predictor.feature_names] for i in range(40)]
    np.testing.assert_array_equal(predictor.score_rows(rows), scores[:40])
    assert FeaturePlan.from_json(predictor.plan) == each.plan
    assert not registry.deploy_champion(name, tmp_path / "endpoints").switched


def test_the_predictor_serves_from_threads(churn: Ready, registry: Registry, tmp_path: Path) -> None:
    promoted(churn, registry)
    predictor = load_package(registry.deploy_champion("churn", tmp_path / "endpoints").folder)
    rows = predictor.encoding.encode_table(churn.training_set.holdout)
    expected, wrong = predictor.score(rows), []

    def work(part: int) -> None:
        for _ in range(20):
            if not np.array_equal(predictor.score(rows[part::4]), expected[part::4]):
                wrong.append(part)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("file", ["model.txt", "plan.json", "schema.json", "golden.json", "manifest.json"])
def test_a_corrupted_package_is_refused_and_the_last_good_one_stays(
    churn: Ready, registry: Registry, tmp_path: Path, file: str
) -> None:
    endpoints = tmp_path / "endpoints"
    promoted(churn, registry)
    registry.deploy_champion("churn", endpoints)
    promoted(churn, registry, seed=8)
    stored = next((registry.artifacts / "churn").glob(f"{registry.lineage('churn', '2').run_id}/**/{file}"))
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    with pytest.raises(CorruptPackage, match=f"{file}.*found"):
        registry.deploy_champion("churn", endpoints)
    current = current_folder(endpoints, "churn")
    assert current.name == "1"
    assert verify_golden(load_package(current)) == 64


def test_a_damaged_endpoint_is_repaired_from_the_registry(churn: Ready, registry: Registry, tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints"
    promoted(churn, registry)
    folder = registry.deploy_champion("churn", endpoints).folder
    (folder / "plan.json").unlink()
    with pytest.raises(MissingPackage, match=r"plan\.json: no such file"):
        load_package(folder)
    registry.deploy_champion("churn", endpoints)
    assert verify_golden(load_package(current_folder(endpoints, "churn"))) == 64


def test_the_endpoint_rolls_back_by_pointer(churn: Ready, registry: Registry, tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints"
    with pytest.raises(MissingPackage, match="nothing is deployed for churn"):
        current_folder(endpoints, "churn")
    promoted(churn, registry)
    registry.deploy_champion("churn", endpoints)
    with pytest.raises(MissingPackage, match="was served before 1"):
        roll_back(endpoints, "churn")
    promoted(churn, registry, seed=8)
    assert registry.deploy_champion("churn", endpoints).previous == "1"
    assert roll_back(endpoints, "churn").version == "1"
    assert current_folder(endpoints, "churn").name == "1"
    assert roll_back(endpoints, "churn").version == "2"


def test_batch_scores_carry_version_and_features(churn: Ready, registry: Registry, shop: Shop, tmp_path: Path) -> None:
    promoted(churn, registry)
    predictor = load_package(registry.deploy_champion("churn", tmp_path / "endpoints").folder)
    customers = pc.unique(shop.lines["customer_id"])
    table = batch_scores(predictor, shop.retrieve, customers, shop.now)
    assert table.column_names[:5] == ["customer_id", "prediction", "model", "version", "scored_at"]
    assert tuple(table.column_names[5:]) == churn.plan.names
    assert table["customer_id"].to_pylist() == customers.to_pylist()
    assert set(table["version"].to_pylist()) == {"1"}
    assert set(table["scored_at"].to_pylist()) == {shop.now}
    prediction = table["prediction"].to_numpy()
    assert ((prediction >= 0) & (prediction <= 1)).all()


def test_code_state_knows_commit_and_dirt(tmp_path: Path) -> None:
    assert code_state(tmp_path) == CodeState("unknown", False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    clean = code_state(tmp_path)
    assert len(clean.commit) == 40
    assert not clean.dirty
    (tmp_path / "a").write_text("2")
    assert code_state(tmp_path) == CodeState(clean.commit, True)
