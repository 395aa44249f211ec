"""The story of a credit model on its sample world, told by really running it.

What belongs here: the order of events and what a person does in them. What does not: anything that the system does by
itself. Nothing is staged: every refusal, incident, drift verdict and approval below is what the system answers.
"""

import time
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from mlops_assets.cli_credit import Desk, show_verdict
from mlops_assets.credit_risk.pipeline import PERSON_TAG
from mlops_assets.credit_risk.reading import status_rows
from mlops_assets.foundation.errors import UserError
from mlops_assets.terminal import console, done, escaped, progress, table

START, TRAINED, UNIT_ERROR = date(2023, 9, 1), date(2025, 9, 30), date(2025, 11, 3)
SHOCK, WATCHED, END = date(2025, 11, 10), date(2025, 12, 31), date(2026, 1, 9)
DATA_SCIENTIST, RISK_OFFICER, OPERATOR = "grace", "ada", "mary"


def tell(applications: int = 40) -> None:
    """Run the whole story: history, approval, a unit error, a shock, drift, a retraining, a bad model, a rollback."""
    Story(applications).tell()


class Story:
    """One telling.

    Parameters
    ----------
    applications
        Applications a day.
    """

    def __init__(self, applications: int) -> None:
        from mlops_assets import environment
        from mlops_assets.definitions import build_defs

        self.place = environment.current()
        # The feed of one day counts income in hundredths; the next delivery of that day is right.
        self.faulty = self._spec(applications, unit_error_days=[UNIT_ERROR.isoformat()], unit_error_share=1.0)
        self.spec = self._spec(applications)
        with console().status("loading the code location"):
            self.defs = {True: build_defs(self.place, [self.faulty]), False: build_defs(self.place, [self.spec])}
        self.instance: Any = None

    def _spec(self, applications: int, **faults: Any) -> Any:
        from mlops_assets.credit_risk.sample_spec import default_spec
        from mlops_assets.credit_risk.spec import Spec

        raw = default_spec().model_dump(mode="json")
        world = {"kind": "sample", "applications_per_day": applications, "shock": SHOCK.isoformat(), "dirt": 0.0003}
        raw["data"]["applications"] = {**world, **faults}
        raw["monitoring"]["window_rows"] = 600
        # Months of the story pass in minutes, and trainings wait for days of the clock.
        raw["retraining"]["cool_down_days"] = 0
        return Spec.model_validate(raw)

    def tell(self) -> None:
        """Run it from the first application to the re-scored decisions."""
        from mlops_assets.running import open_instance

        started = time.monotonic()
        with open_instance(self.place) as instance:
            self.instance = instance
            if self._desk().history.records():
                console().print(
                    f"{self.spec.name}: the story was told in {escaped(self.place.home)}; set MLOPS_ASSETS_HOME to "
                    "another folder to hear it again. Where things stand:"
                )
                table(self.spec.name, ["", ""], status_rows(self.spec, self.place, instance))
                return
            self._first_champion()
            self._unit_error()
            self._shock()
            self._retrained()
            self._bad_model()
        console().print(f"credit_risk: told in {time.monotonic() - started:.0f} s")

    # --- Chapters ---

    def _first_champion(self) -> None:
        self._chapter("1. Two years of applications, two candidates, and a second person who approves")
        self._run("ingest", START, TRAINED, "history")
        self._run("train", TRAINED, TRAINED, f"training as of {TRAINED}", by=DATA_SCIENTIST)
        show_verdict(self.spec, self.place, self.instance)
        version = self._proposed()
        self._refused(lambda: self._approve(version, DATA_SCIENTIST, "I trained it, so I know it is good"))
        self._approve(version, RISK_OFFICER, "all gates passed, the card is read")
        self._run("daily", TRAINED + timedelta(days=1), UNIT_ERROR - timedelta(days=1), "a month of decisions")

    def _unit_error(self) -> None:
        self._chapter(f"2. {UNIT_ERROR}: the feed counts income in hundredths")
        self._refused(lambda: self._run("daily", UNIT_ERROR, UNIT_ERROR, "the day's batch", faulty=True))
        console().print("  The batch is blocked, and so is everything after it, in whatever run:")
        next_day = UNIT_ERROR + timedelta(days=1)
        self._refused(lambda: self._run("daily", next_day, next_day, "the next day, in another run"))
        self._run("daily", UNIT_ERROR, next_day, "the corrected delivery, and the next day")
        rows = [(each.id, each.period, each.rule, each.state, each.by or "", each.reason or "")
                for each in self._incidents()]  # fmt: skip
        table("data incidents", ["incident", "period", "rule", "state", "by", "reason"], rows)

    def _shock(self) -> None:
        self._chapter(f"3. {SHOCK}: a shock; the applications change, and two windows in a row say so")
        self._run("daily", UNIT_ERROR + timedelta(days=2), WATCHED, "eight weeks of decisions")

    def _retrained(self) -> None:
        self._chapter("4. The sensor weighs the evidence and asks for a training; it can only propose")
        request = self._tick()
        assert request is not None
        self._run("train", WATCHED, WATCHED, "training asked for by the sensor", tags=request.tags)
        show_verdict(self.spec, self.place, self.instance)
        console().print("  The same evidence does not ask twice:")
        self._tick()
        version = self._proposed()
        self._approve(version, RISK_OFFICER, "the shock is real; the card is read")
        self._run("daily", WATCHED + timedelta(days=1), END, "decisions by the new champion")

    def _bad_model(self) -> None:
        self._chapter("5. Complaints come in: the new model goes, and what it decided is decided again")
        at = self._desk()
        bad, good = self._versions()
        record = at.history.rollback(good, OPERATOR, "complaints about rejected applicants of long standing")
        done(f"version {record.from_version} -> {record.version}, by {record.by}, after its files were verified")
        table("touched by the bad model", ["", ""], at.tracer.impact(model=bad).rows())
        again = at.tracer.rescore(model=bad, by=OPERATOR, reason="the version was rolled back")
        table(f"decisions of version {bad}, beside those of version {again.version}", ["", ""], again.rows())
        shown = again.changed[["application_id", "decision_before", "decision_after", "pd_before", "pd_after"]].head(5)
        table("some that change", list(shown.columns), shown.round(4).to_numpy().tolist())
        problems, replayed = at.tracer.verify_log(), at.tracer.replay()
        done(f"{replayed.equal} of {replayed.compared} decisions replay byte for byte; {len(problems)} broken entries")
        rejected = next(iter(at.log.touched(model=at.history.champion().sha256, decision="reject")))
        for found in at.tracer.trace(rejected.body["decision_id"]):
            table("one rejection, traced", ["link", "what"], found.rows())
        command = f"mlops-assets trace {self.spec.name} {rejected.body['decision_id']}"
        console().print(f"Any other: [bold]{command}[/]")

    # --- What a person does ---

    def _desk(self) -> Desk:
        return Desk(self.place, self.instance, self.spec)

    def _incidents(self) -> Sequence[Any]:
        from mlops_assets.credit_risk import incidents

        return incidents.history(self._desk().operations)

    def _run(
        self, job: str, first: date, last: date, label: str, *, faulty: bool = False, by: str | None = None,
        tags: Any = None,
    ) -> None:  # fmt: skip
        from mlops_assets.running import run_job

        days = [(first + timedelta(days=day)).isoformat() for day in range((last - first).days + 1)]
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        person = {PERSON_TAG: by} if by else {}
        with progress(f"{label} ({span})", quiet=True) as follow:
            try:
                run_job(
                    self.defs[faulty].resolve_job_def(f"{self.spec.name}_{job}"), self.instance, follow, periods=days,
                    name=label, tags={**(tags or {}), **person},
                )  # fmt: skip
            finally:
                for text in follow.warnings:
                    if "Not assessed" not in text:
                        console().print(f"  [yellow]warning[/] {escaped(text[:300])}")

    def _refused(self, act: Any) -> None:
        try:
            act()
        except UserError as error:
            # Of a failed run the cause, without the advice to try again.
            lines = str(error).splitlines()
            console().print(f"  [red]refused[/] {escaped(lines[1] if len(lines) > 1 else lines[0])}")
            return
        raise UserError("this should have been refused", where="demo", remedy="report it: a guard did not hold.")

    def _approve(self, version: int, by: str, reason: str) -> None:
        record = self._desk().history.approve(version, by, reason)
        done(f"version {record.version} serves: approved by {by} ({reason})")

    def _proposed(self) -> int:
        proposal = self._desk().history.open_proposal()
        if proposal is None:
            raise UserError(
                "no candidate was proposed", where=self.spec.name, remedy="see above which gate did not pass."
            )
        return int(proposal.record.candidate)

    def _versions(self) -> tuple[int, int]:
        """Return the version that serves and the one that served before it."""
        moves = [record for record in self._desk().history.records() if record.to_version is not None]
        return moves[-1].to_version, moves[-1].from_version

    def _tick(self) -> Any:
        import dagster as dg

        defs = self.defs[False]
        sensor = defs.resolve_sensor_def(f"{self.spec.name}_retrain")
        with dg.build_sensor_context(
            instance=self.instance, definitions=defs, resources=defs.resources, sensor_name=sensor.name
        ) as context:
            answer = sensor.evaluate_tick(context)
        for request in answer.run_requests or ():
            done(f"the sensor asks: {request.run_key}")
            return request
        done(f"the sensor does not ask: {answer.skip_message}")
        return None

    def _chapter(self, title: str) -> None:
        console().print(f"\n[bold underline]{title}[/]")
