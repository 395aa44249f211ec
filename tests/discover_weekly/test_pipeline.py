"""From a training set to a verdict: the same input gives the same version, and no worse model ever serves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.discover_weekly import judging, pipeline
from mlops_assets.discover_weekly.judging import Judgement
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, ModelVersion, Registry
from mlops_assets.foundation.resources import ModelRegistry
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore
from tests.conftest import WEEKS, Finished

MakeSpec = Callable[..., Spec]
TERRIBLE = {"collaborative": {"factors": 2, "iterations": 1, "regularization": 1e6}}


def new_registry(folder: Path) -> Registry:
    found: Registry = ModelRegistry(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", root=str(folder / "models")
    ).open()
    return found


def training_set_of(finished: Finished, week: str) -> Snapshot:
    everything = SnapshotStore(finished.store.path("snapshots")).list("discover_weekly/training_set")
    (found,) = [snapshot for snapshot in everything if snapshot.metadata["as_of"] == week]
    return found


@dataclass
class Workshop:
    """A registry of its own, on the finished run's frozen training sets."""

    registry: Registry
    sets: dict[str, Snapshot]
    features: pd.DataFrame

    def parts(self, spec: Spec, week: str = WEEKS[4]) -> tuple[ModelVersion, ModelVersion]:
        tags = pipeline.run_tags(week, "run", "code")
        taste = pipeline.train_collaborative(spec, self.sets[week], self.registry, tags)
        return taste, pipeline.train_content(spec, self.features, taste, self.registry, tags)

    def blend(self, spec: Spec, week: str = WEEKS[4]) -> ModelVersion:
        tags = pipeline.run_tags(week, "run", "code")
        return pipeline.train_blend(spec, self.sets[week], self.features, *self.parts(spec, week), self.registry, tags)

    def judge(self, spec: Spec, candidate: ModelVersion, champion: ModelVersion | None) -> Judgement:
        return judging.judge(spec, self.sets[WEEKS[4]], self.features, candidate, champion, self.registry)


def workshop(finished: Finished, folder: Path) -> Workshop:
    folder.mkdir(parents=True, exist_ok=True)
    sets = {week: training_set_of(finished, week) for week in WEEKS[3:]}
    features = pipeline.track_features(finished.spec, finished.resources["warehouse"], WEEKS[4])
    return Workshop(new_registry(folder), sets, features)


@pytest.fixture(scope="module")
def shop(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(finished, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def good(shop: Workshop, finished: Finished) -> ModelVersion:
    return shop.blend(finished.spec)


@pytest.fixture(scope="module")
def bad(shop: Workshop, make_spec: MakeSpec) -> ModelVersion:
    return shop.blend(make_spec(**TERRIBLE))


@pytest.fixture(scope="module")
def older(shop: Workshop, finished: Finished) -> ModelVersion:
    return shop.blend(finished.spec, WEEKS[3])


@pytest.fixture(scope="module")
def first(shop: Workshop, finished: Finished, good: ModelVersion) -> Judgement:
    """The good model, evaluated when there was no champion."""
    return shop.judge(finished.spec, good, None)


@pytest.fixture(scope="module")
def worse(shop: Workshop, finished: Finished, good: ModelVersion, bad: ModelVersion) -> Judgement:
    """The bad model, evaluated beside the good one."""
    return shop.judge(finished.spec, bad, good)


@pytest.fixture
def history(shop: Workshop) -> Iterator[ChampionHistory]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield ChampionHistory(instance, "discover_weekly", shop.registry, "discover_weekly.blend_model")


def decided(spec: Spec, history: ChampionHistory, judgement: Judgement) -> ChampionRecord:
    """Decide and log the record, as the champion's asset does."""
    judged = Judged(judgement.version, judgement.evidence_sha256)
    record, _ = judging.decide_champion(spec, history, judged, by="test")
    key = dg.AssetKey(["discover_weekly", "champion"])
    history.instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record.metadata()))
    return record


# ---- training


def test_training_again_elsewhere_gives_the_same_bytes(
    finished: Finished, shop: Workshop, good: ModelVersion, tmp_path: Path
) -> None:
    other = workshop(finished, tmp_path / "other")
    again = other.blend(finished.spec)
    assert again.files == good.files
    assert again.sha256 == good.sha256
    assert {name: part["sha256"] for name, part in again.parts.items()} == {
        name: part["sha256"] for name, part in good.parts.items()
    }


def test_training_again_in_the_same_place_gives_the_same_version(
    finished: Finished, shop: Workshop, good: ModelVersion
) -> None:
    assert shop.blend(finished.spec) == good
    # And it is what the finished run's own job trained.
    stored = finished.resources["models"].open().latest("discover_weekly.blend_model")
    assert stored.sha256 == good.sha256


def test_a_version_tells_what_it_was_trained_on(shop: Workshop, good: ModelVersion) -> None:
    assert good.tags["training_set"] == shop.sets[WEEKS[4]].sha256
    assert (good.tags["as_of"], good.tags["trained_until"]) == (WEEKS[4], WEEKS[3])
    assert sorted(good.parts) == ["discover_weekly.collaborative_model", "discover_weekly.content_model"]
    assert pipeline.load_blend(shop.registry, good).parts == {name: part["sha256"] for name, part in good.parts.items()}


def test_a_content_model_of_another_collaborative_model_is_refused(
    finished: Finished, shop: Workshop, make_spec: MakeSpec
) -> None:
    spec = make_spec(training={"seed": 8})
    taste, _ = shop.parts(spec)
    _, foreign = shop.parts(finished.spec)
    with pytest.raises(UserError, match="fit the content model again on this collaborative model"):
        pipeline.train_blend(spec, shop.sets[WEEKS[4]], shop.features, taste, foreign, shop.registry, {})


def test_a_damaged_model_file_is_named_and_nothing_is_decided(
    finished: Finished, history: ChampionHistory, first: Judgement, tmp_path: Path
) -> None:
    spec = finished.spec
    decided(spec, history, first)
    shop = workshop(finished, tmp_path / "shop")
    taste, content = shop.parts(spec)
    victim = next((tmp_path / "shop" / "models").rglob("*collaborative_model/*/files/model/collaborative.npz"))
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"model/collaborative\.npz.*Remedy"):
        pipeline.train_content(spec, shop.features, taste, shop.registry, {})
    with pytest.raises(UserError, match=r"model/collaborative\.npz.*Remedy"):
        pipeline.train_blend(spec, shop.sets[WEEKS[4]], shop.features, taste, content, shop.registry, {})
    assert shop.registry.versions("discover_weekly.blend_model") == []
    assert history.champion() == first.version


# ---- the verdict


def test_the_first_good_model_is_promoted_on_its_evidence(
    finished: Finished, history: ChampionHistory, first: Judgement
) -> None:
    record = decided(finished.spec, history, first)
    assert (record.verdict, record.version, record.from_version) == ("promoted", first.version.version, None)
    assert record.sha256 == first.version.sha256
    assert record.evidence_sha256 == first.evidence_sha256
    evidence = history.registry.evidence(first.version, first.evidence_sha256)
    assert evidence["candidate"]["sha256"] == first.version.sha256
    assert evidence["champion"] is None
    assert [gate["gate"] for gate in evidence["gates"]] == ["accuracy"]
    assert history.champion() == first.version
    assert history.verify() == []


def test_numbers_on_the_page_are_those_of_the_evidence(first: Judgement) -> None:
    assert {"candidate", "popular", "item_item", "collaborative"} <= set(first.headline)
    for measured in first.headline.values():
        assert measured.low <= measured.value <= measured.high
    assert first.plotted["ndcg_at_10"] == pytest.approx(first.headline["candidate"].value)
    assert first.headline["candidate"].value > first.headline["popular"].value


def test_a_terrible_first_model_is_blocked_and_nothing_serves(
    finished: Finished, shop: Workshop, history: ChampionHistory, bad: ModelVersion
) -> None:
    record = decided(finished.spec, history, shop.judge(finished.spec, bad, None))
    assert (record.verdict, record.version) == ("blocked", None)
    assert "accuracy" in record.reason
    assert history.current() is None


def test_a_worse_model_never_becomes_champion(
    finished: Finished, history: ChampionHistory, first: Judgement, worse: Judgement, make_spec: MakeSpec
) -> None:
    decided(finished.spec, history, first)
    # Also where no baseline blocks it: it is still not better than the champion.
    for spec in (finished.spec, make_spec(evaluation={"must_beat": []})):
        record = decided(spec, history, worse)
        assert record.verdict in {"kept", "blocked"}
        assert record.version == first.version.version
        assert record.to_version is None
        assert history.champion() == first.version


def test_a_worse_model_is_kept_out_by_the_comparison_alone(
    finished: Finished, history: ChampionHistory, first: Judgement, worse: Judgement
) -> None:
    decided(finished.spec, history, first)
    evidence = dict(history.registry.evidence(worse.version, worse.evidence_sha256))
    evidence["gates"] = [
        {**gate, "status": "passed"} if gate["gate"] == "accuracy" else gate for gate in evidence["gates"]
    ]
    digest = history.registry.attach_evidence(worse.version, evidence)
    record = decided(finished.spec, history, replace(worse, evidence_sha256=digest))
    assert record.verdict == "kept"
    assert "champion_comparison failed" in record.reason
    assert history.champion() == first.version


def test_the_champion_itself_as_candidate_is_kept(
    finished: Finished, shop: Workshop, history: ChampionHistory, first: Judgement, good: ModelVersion
) -> None:
    decided(finished.spec, history, first)
    record = decided(finished.spec, history, shop.judge(finished.spec, good, good))
    assert record.verdict == "kept"
    assert "the champion's own content" in record.reason
    assert history.champion() == good


def test_an_old_champion_gives_way_to_one_that_is_as_good(
    shop: Workshop, history: ChampionHistory, older: ModelVersion, good: ModelVersion, make_spec: MakeSpec
) -> None:
    aging = make_spec(evaluation={"champion_max_age": 1, "margin": 0.9})
    decided(aging, history, shop.judge(aging, older, None))
    judgement = shop.judge(aging, good, older)
    comparison = judgement.gates_table.set_index("gate").loc["champion_comparison"]
    assert comparison["bound"] < 0
    assert "1 periods old: as good is enough" in comparison["reason"]
    record = decided(aging, history, judgement)
    assert (record.verdict, record.from_version, record.to_version) == ("promoted", older.version, good.version)


def test_a_young_champion_gives_way_to_a_better_one_only(
    shop: Workshop, older: ModelVersion, good: ModelVersion, make_spec: MakeSpec
) -> None:
    young = make_spec(evaluation={"champion_max_age": 2, "margin": 0.9})
    comparison = shop.judge(young, good, older).gates_table.set_index("gate").loc["champion_comparison"]
    assert comparison["bound"] == 0.0
    assert comparison["status"] == ("passed" if float(comparison["interval"].split(" to ")[0]) > 0 else "failed")


@pytest.mark.parametrize("then", ["no champion", "another champion"])
def test_an_evaluation_beside_another_champion_is_refused(
    finished: Finished,
    shop: Workshop,
    history: ChampionHistory,
    first: Judgement,
    older: ModelVersion,
    good: ModelVersion,
    then: str,
) -> None:
    """The champion changed between evaluation and verdict: the comparison says nothing any more."""
    spec = finished.spec
    decided(spec, history, replace(first, version=older, evidence_sha256=_evidence_for(shop, older, first)))
    assert history.champion() == older
    stale = first if then == "no champion" else shop.judge(spec, good, _another(shop, finished))
    record = decided(spec, history, stale)
    assert record.verdict == "blocked"
    assert "evaluate again" in record.reason
    assert history.champion() == older


def _evidence_for(shop: Workshop, version: ModelVersion, like: Judgement) -> str:
    evidence: dict[str, Any] = shop.registry.evidence(like.version, like.evidence_sha256)
    return shop.registry.attach_evidence(version, {**evidence, "candidate": version.as_part()})


def _another(shop: Workshop, finished: Finished) -> ModelVersion:
    spec = Spec.model_validate({**finished.spec.model_dump(), "training": {"seed": 9}, "base": Path()})
    return shop.blend(spec)


def test_evidence_of_another_version_is_refused(
    finished: Finished, history: ChampionHistory, first: Judgement, bad: ModelVersion
) -> None:
    with pytest.raises(UserError):
        judging.decide_champion(finished.spec, history, Judged(bad, first.evidence_sha256), by="test")
