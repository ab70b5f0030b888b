"""A run in the ledger with what came of it, written as rows: any answers to any studies, no PACS and no network."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import select

from dicom_node.bundle import Disagreement
from dicom_node.combination import results
from dicom_node.config import Settings
from dicom_node.domain import ObjectKind, Purpose, RunState, State, StudyState
from dicom_node.ledger import Ledger
from dicom_node.retrospective.report.making import Wanted, make
from dicom_node.retrospective.tables import RunInstanceRow, RunRow, RunStudyRow
from dicom_node.tables import InstanceRow, MemberOutputRow, ObjectRow, OutcomeRow, ReleaseRow, ScreeningRow
from tests.result_factories import manifest, target

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.bundle import Manifest
    from dicom_node.database import Database
    from dicom_node.retrospective.report.making import Made

BEGUN = datetime(2026, 3, 31, 20, 0, tzinfo=UTC)
BUNDLE = manifest(
    targets=(
        target().model_copy(
            update={"disagreement": Disagreement(bound=2.0, share=0.1, error=0.1, error_beyond=0.4)},
        ),
    )
)
SCANNERS = (("Northlight", "Planar 500"), ("Northlight", "Cart 2"), ("Weitblick", "DR-7"))


@dataclass(frozen=True)
class Film:
    """An image of a study: what both members of `BUNDLE` say of it, as logits, or why there is no answer."""

    zhang: float | None = None
    basu: float | None = None
    state: State = State.WITHHELD
    reason: str | None = None
    heatmap: str | None = None
    view: str = "PA"


LATERAL = Film(state=State.DECLINED, reason="lateral", view="lateral")
BROKEN = Film(state=State.FAILED, reason="bad_pixels")
WAITING = Film(state=State.WAITING)


def film(logit: float, apart: float = 0.0, **changed) -> Film:
    """The ensemble's logit, and how far its two members lie apart."""
    return Film(logit + apart / 2, logit - apart / 2, **changed)


class Cohort:
    """The run `name`; studies are added one by one and are numbered from 1 on."""

    def __init__(self, database: Database, *, bundle: Manifest = BUNDLE, name: str = "march", **run) -> None:
        self._database = database
        Ledger(database).activate_release(bundle)
        self.bundle = bundle
        self._count = 0
        fields = {
            "source": "pacs",
            "criteria": {"first_day": "2026-03-01", "last_day": "2026-03-30", "modalities": ["CR", "DX"]},
            "state": RunState.ENDED,
            "created_at": BEGUN,
            "begun_at": BEGUN,
            "ended_at": BEGUN.replace(day=1, month=4),
        }
        with database.write() as session:
            row = RunRow(name=name, **(fields | run))
            session.add(row)
            session.flush()
            self.run_id = row.id
        self.use(bundle)

    def use(self, bundle: Manifest) -> None:
        """What is added from now on was screened by this release."""
        Ledger(self._database).activate_release(bundle)
        self.bundle = bundle
        with self._database.read() as session:
            self._release_id = session.scalars(select(ReleaseRow.id).filter_by(release=bundle.release)).one()

    def study(
        self,
        *films: Film,
        state: StudyState = StudyState.DONE,
        reason: str | None = None,
        day: str = "20260301",
        patient: str | None = None,
        accession: str | None = None,
        scanner: tuple[str, str] = SCANNERS[0],
        sex: str | None = "F",
        age: int | None = 50,
        missing: int = 0,
        unanswered: int = 0,
    ) -> str:
        """The study's UID; `missing` images never landed, `unanswered` ones landed and have no screening yet."""
        self._count += 1
        uid = f"1.3.{self._count}"
        with self._database.write() as session:
            study = RunStudyRow(
                run_id=self.run_id,
                study_instance_uid=uid,
                study_date=day,
                accession_number=accession,
                patient_id=patient,
                state=state,
                reason=reason,
            )
            session.add(study)
            session.flush()
            for number, one in enumerate(films, start=1):
                session.add(
                    RunInstanceRow(
                        study_id=study.id,
                        sop_instance_uid=f"1.2.{self._count}.{number}",
                        series_instance_uid=f"1.4.{self._count}",
                        landed=True,
                        screening_id=self._screened(session, uid, number, one, patient, accession, scanner, sex, age),
                    )
                )
            for number in range(missing + unanswered):
                session.add(
                    RunInstanceRow(
                        study_id=study.id,
                        sop_instance_uid=f"1.2.{self._count}.9{number}",
                        series_instance_uid=f"1.4.{self._count}",
                        landed=number >= missing,
                    )
                )
        return uid

    def line(self) -> None:
        """A line of a file to which the PACS has no study."""
        with self._database.write() as session:
            session.add(
                RunStudyRow(run_id=self.run_id, state=StudyState.FAILED, reason="not_found", asked_for="line 3")
            )

    def _screened(self, session, uid, number, one, patient, accession, scanner, sex, age) -> int:
        instance = InstanceRow(
            sop_instance_uid=f"1.2.{self._count}.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
            study_instance_uid=uid,
            series_instance_uid=f"1.4.{self._count}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sha256="a" * 64,
            size_bytes=10,
            calling_ae_title="PACS",
            modality="CR",
            view=one.view,
            body_part="chest",
            evidence=[],
            notes=[],
            patient_id=patient,
            accession_number=accession,
            patient_sex=sex,
            patient_age=age,
            manufacturer=scanner[0],
            model_name=scanner[1],
            received_at=BEGUN,
        )
        session.add(instance)
        session.flush()
        return self.screening(session, instance.id, one).id

    def screening(self, session, instance_id: int, one: Film, number: int = 1) -> ScreeningRow:
        """A screening of the instance, with its answers."""
        row = ScreeningRow(
            instance_id=instance_id,
            release_id=self._release_id,
            purpose=Purpose.RETROSPECTIVE,
            delivers=False,
            state=one.state,
            reason=one.reason,
            round=number,
        )
        session.add(row)
        session.flush()
        if one.zhang is not None and one.basu is not None:
            outputs = {"zhang": {"p_cls": one.zhang}, "basu": {"p_cls": one.basu}}
            for position, result in enumerate(results(self.bundle, outputs)):
                session.add(
                    OutcomeRow(
                        screening_id=row.id,
                        target=result.target,
                        position=position,
                        operating_point="balanced",
                        probability=result.probability,
                        threshold=result.threshold,
                        flagged=result.flagged,
                        decision=result.decision,
                    )
                )
            for member, values in outputs.items():
                for output, value in values.items():
                    session.add(MemberOutputRow(screening_id=row.id, member=member, output=output, value=value))
        if one.heatmap:
            session.add(
                ObjectRow(
                    screening_id=row.id,
                    kind=ObjectKind.HEATMAP,
                    name="heatmap",
                    path=one.heatmap,
                    sha256="b" * 64,
                    created_at=BEGUN,
                )
            )
        return row


def filled(cohort: Cohort, studies: int = 300, seed: int = 0, heatmaps: tuple[str, ...] = ()) -> dict[str, bool]:
    """Studies of all kinds, about every third patient with two of them; the truth by UID, of those with an answer."""
    rng = np.random.default_rng(seed)
    truth: dict[str, bool] = {}
    patient = 0
    for number in range(studies):
        patient += rng.random() < 0.7
        positive = bool(rng.random() < 0.3)
        scanner = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
        known = {
            "day": f"202603{1 + 30 * number // studies:02d}",
            "patient": f"PID-{patient}",
            "accession": f"ACC{number:05d}",
            "scanner": SCANNERS[scanner],
            "sex": str(rng.choice(["F", "M"])),
            "age": int(rng.integers(4, 95)),
        }
        logit = float(rng.normal(1.4 if positive else -1.6, 1.3) - 0.4 * (scanner == 2))
        films = [film(round(logit, 3), float(rng.exponential(0.8)), view=str(rng.choice(["PA", "AP"], p=(0.7, 0.3))))]
        if heatmaps and films[0].zhang + films[0].basu > 0:
            shown = heatmaps[number % len(heatmaps)]
            films[0] = Film(films[0].zhang, films[0].basu, heatmap=shown, view=films[0].view)
        if rng.random() < 0.1:
            films.append(film(round(logit - float(rng.random()), 3)))
        if rng.random() < 0.2:
            films.append(LATERAL)
        kind = rng.random()
        if kind < 0.03:
            cohort.study(LATERAL, **known)
        elif kind < 0.05:
            cohort.study(BROKEN, state=StudyState.FAILED, reason="bad_pixels", **known)
        elif kind < 0.06:
            cohort.study(state=StudyState.FAILED, reason="incomplete", missing=1, **known)
        else:
            truth[cohort.study(*films, **known)] = positive
    return truth


def write_labels(file: Path, truth: dict[str, bool], *, column: str = "label") -> Path:
    """The truth as a site would give it."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("study_instance_uid", column))
        writer.writerows((uid, int(positive)) for uid, positive in truth.items())
    return file


def told_by(database: Database, folder: Path, wanted: Wanted, *, identity: bool = True) -> Made:
    """The report, in a folder of `folder`."""
    settings = Settings(archive_dir=folder / "archive", store_patient_identity=identity)
    return make(settings, database, wanted, folder / "reports", lambda studies, _: studies)


def invented(database: Database, folder: Path) -> Made:
    """The report of 200 studies with labels of 150 of them, and of one that is not in the run."""
    truth = filled(Cohort(database), 200)
    some = dict(list(truth.items())[:150])
    labels = write_labels(folder / "labels.csv", some | {"1.2.3.4": True})
    return told_by(database, folder, Wanted("march", labels, sensitivity=0.9))


def rows_of(made: Made, name: str = "studies") -> list[dict[str, str]]:
    """A table of the report."""
    with (made.folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
