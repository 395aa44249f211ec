"""Outlier flags: every accepted application of a day once, by the champion's forest, and never anybody else's."""

import pandas as pd
import pytest

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.screening import FLAGS, Screened, flag_periods
from tests.credit_risk.decided_world import (
    BOOSTED,
    EDGES,
    GBM,
    GOOD,
    NEW,
    PLAIN,
    RISKY,
    SCORECARD,
    World,
    applications_of,
)


def flags(world: World) -> pd.DataFrame:
    return world.warehouse.query("select * from lender.outlier_flags order by period, batch_id, application_id")


def screened(world: World, *days: str, number: int = GBM) -> Screened:
    return flag_periods(world.spec, days, world.warehouse, world.registry, world.version(number))


def accepted(world: World, day: str) -> pd.DataFrame:
    return world.warehouse.query(
        "select * from lender.current_applications where period = cast(? as date) order by application_id", [day]
    )


class TestFlags:
    def test_every_accepted_application_has_its_score(self, copied):
        found = screened(copied, PLAIN, EDGES, BOOSTED)
        table = flags(copied)
        assert list(table.columns) == list(FLAGS)
        for day in (PLAIN, EDGES, BOOSTED):
            of_day = table[table["period"] == pd.Timestamp(day)]
            rows = accepted(copied, day)
            assert sorted(of_day["application_id"]) == sorted(rows["application_id"])
            assert set(of_day["batch_id"]) == set(rows["batch_id"])
        assert found.rows == len(table)
        assert found.flagged == table["flagged"].sum()
        assert set(table["model_version"]) == {GBM}
        assert table["score"].between(0, 1).all()
        assert table.loc[table["flagged"], "main_feature"].notna().all()
        assert table.loc[~table["flagged"], "main_feature"].isna().all()
        assert found.features.total() == found.flagged
        assert found.share == pytest.approx(table["flagged"].mean())
        assert found.model == "lender.pd_model version 2"

    def test_they_are_those_that_the_decisions_have(self, copied):
        """A day's flags and the flags in its decisions are of one forest, bit for bit."""
        for day, number in ((PLAIN, SCORECARD), (BOOSTED, GBM)):
            screened(copied, day, number=number)
            table = flags(copied).set_index("application_id")
            for entry in copied.log().of_period(day):
                outlier = entry.body["flags"]["outlier"]
                if outlier is not None:
                    row = table.loc[entry.subject]
                    assert float(row["score"]).hex() == outlier["score"]
                    assert (bool(row["flagged"]), row["main_feature"] or None) == (
                        outlier["flagged"], outlier["main_feature"]
                    )  # fmt: skip

    def test_what_lies_apart_is_flagged_and_told_why(self, copied):
        model = OutlierModel.load(copied.registry.fetch(copied.version(GBM)))
        odd = {**GOOD, **RISKY, "annual_income": 400_000, "employment_years": 45, "term_months": 12,
               "credit_history_months": 700, "open_accounts": 38, "months_since_delinquency": 119,
               "purpose": "medical", "region": "capital"}  # fmt: skip
        rows = [{**odd, "application_id": f"odd-{at}", "applied_at": f"{NEW}T10:00:00Z"} for at in range(2)]
        usual = applications_of(NEW, 40)
        copied.deliver(NEW, pd.concat([usual, pd.DataFrame(rows, dtype=object)], ignore_index=True))
        screened(copied, NEW)
        table = flags(copied).set_index("application_id")
        assert table.loc[["odd-0", "odd-1"], "flagged"].all()
        assert set(table.loc[["odd-0", "odd-1"], "main_feature"]) <= set(model.features)
        assert table["score"].loc["odd-0"] == table["score"].loc["odd-1"] == table["score"].max()
        assert table["flagged"].mean() < 0.5
        # It is a flag for a human, no verdict: nobody was taken out.
        assert len(accepted(copied, NEW)) == len(table)

    def test_a_day_alone_is_as_among_others(self, copied):
        screened(copied, PLAIN, EDGES, BOOSTED)
        together = flags(copied)
        screened(copied, EDGES)
        pd.testing.assert_frame_equal(flags(copied), together)


class TestAgain:
    def test_a_rerun_leaves_the_same_rows(self, copied):
        first = screened(copied, PLAIN, BOOSTED)
        before = flags(copied)
        assert screened(copied, PLAIN, BOOSTED) == first
        pd.testing.assert_frame_equal(flags(copied), before)

    def test_another_champion_judges_anew_only_what_it_is_asked_for(self, copied):
        screened(copied, PLAIN, BOOSTED, number=SCORECARD)
        screened(copied, BOOSTED, number=GBM)
        found = flags(copied).groupby("period")["model_version"].unique()
        assert found[pd.Timestamp(PLAIN)].tolist() == [SCORECARD]
        assert found[pd.Timestamp(BOOSTED)].tolist() == [GBM]

    def test_a_corrected_delivery_takes_the_place_of_the_old_one(self, copied):
        frame = applications_of(NEW, 40)
        copied.deliver(NEW, frame)
        screened(copied, NEW)
        shorter = copied.deliver(NEW, frame.head(30))
        screened(copied, NEW)
        table = flags(copied)
        assert set(table["batch_id"]) == {shorter}
        assert len(table) == len(accepted(copied, NEW)) < 40


class TestNothingToJudge:
    def test_without_a_champion_nothing_is_judged(self, copied):
        assert flag_periods(copied.spec, [PLAIN], copied.warehouse, copied.registry, None) == Screened()
        with copied.warehouse.session() as tables:
            assert not tables.exists("lender.outlier_flags")
        assert Screened().share == 0.0

    def test_a_day_that_nobody_applied_on(self, copied):
        found = screened(copied, NEW)
        assert (found.rows, found.flagged, found.share) == (0, 0, 0.0)
        assert flags(copied).empty

    def test_a_blocked_day_is_not_judged(self, copied):
        frame = applications_of(NEW, 40)
        incomes = pd.to_numeric(frame["annual_income"], errors="coerce") / 100
        copied.deliver(NEW, frame.assign(annual_income=incomes))
        assert screened(copied, NEW).rows == 0


class TestTheAsset:
    def test_it_judges_by_whoever_serves(self, copied):
        copied.history.rollback(SCORECARD, by="mary", reason="complaints")
        assert copied.materialize("outlier_flags", BOOSTED).success
        assert set(flags(copied)["model_version"]) == {SCORECARD}
        champion = pipeline.current_champion(copied.spec, copied.instance, copied.registry)
        assert champion is not None
        model = OutlierModel.load(copied.registry.fetch(champion))
        again = model.score(FeatureSchema.of(copied.spec).matrix(accepted(copied, BOOSTED)))
        assert flags(copied)["score"].tolist() == again.score.tolist()
