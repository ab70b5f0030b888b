"""The ledger: what was received, what became of it, and who may work on it now. The one truth of the node.

States of a screening (`dicom_node.domain.State`)::

    receive -> declined                      admission says no
            -> waiting <-> claimed           claim; a lease that runs out, or a retry, gives it back
                           claimed -> predicted -> reported -> delivered | withheld
                           claimed, predicted -> declined      the pixels say no
    claimed, predicted, reported -> failed                     permanent reason, too many failures, rejected delivery

A screening is `reported` from its heatmap on; it ends when its study's report tells of it and both have ended at every
destination. Workers move screenings through `dicom_node.claims`, reports through `dicom_node.reports`, deliveries
through `dicom_node.outbox`; `dicom_node.predictions` keeps what the networks said, `dicom_node.retractions` what was
taken back, `dicom_node.releases` releases and thresholds, `dicom_node.rescreening` begins further rounds.
`dicom_node.explain`, with its two histories, and `dicom_node.overview` only read. No other module knows the tables, but
for `dicom_node.database` its own row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError

from dicom_node.config import Worklist
from dicom_node.domain import ObjectKind, Origin, Purpose, State
from dicom_node.predictions import target_results
from dicom_node.releases import ReleaseError, Releases
from dicom_node.retrospective.arrivals import asked_for, land, land_known, make_live
from dicom_node.tables import (
    InstanceRow,
    ObjectRow,
    OutcomeRow,
    ReleaseRow,
    ResendRow,
    ScreeningRow,
    db_now,
    storable,
)
from dicom_node.transitions import OWN, log_transition
from dicom_node.worklist.arrivals import arrive

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session

    from dicom_node.archive import ArchivedFile
    from dicom_node.bundle import Manifest
    from dicom_node.database import Database
    from dicom_node.domain import Admission, NodeError, TargetResult


@dataclass(frozen=True, slots=True)
class Received:
    """What is known of one instance when it arrives. `file` is None where its bytes were not kept.

    `patient_age` is in years, `location` where the patient was; `senders` names the peers of the settings by whose AE
    title it came.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    file: ArchivedFile | None
    calling_ae_title: str
    modality: str
    admission: Admission
    patient_id: str | None = None
    patient_name: str | None = None
    accession_number: str | None = None
    study_date: str | None = None
    patient_sex: str | None = None
    patient_age: int | None = None
    acquired_at: datetime | None = None
    location: str = ""
    manufacturer: str = ""
    model_name: str = ""
    origin: Origin = Origin.SENT
    run_study_id: int | None = None
    senders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of one instance: its own screening in brief."""

    state: State
    reason: str | None
    targets: tuple[TargetResult, ...]
    sop_instance_uids: dict[str, str]
    objects: dict[str, str]


class Ledger:
    """What came in, by which release it is screened, and what became of it; `policy` says what moves a study up."""

    def __init__(self, database: Database, policy: Worklist | None = None) -> None:
        self._database = database
        self._policy = policy or Worklist()

    def explain(self, error: SQLAlchemyError) -> NodeError:
        """What an error of the database means, in one line that holds no row."""
        return self._database.explain(error)

    def activate_release(self, manifest: Manifest) -> None:
        """New instances are screened by this release, and so are those that no worker has claimed yet.

        Raises
        ------
        ReleaseError
            Where `Releases.activate` refuses it.
        """
        Releases(self._database).activate(manifest)

    def active_manifest(self) -> Manifest | None:
        """The manifest of the release that new instances are screened by; None where there is none yet."""
        return Releases(self._database).active()

    def expect_any_release(self) -> None:
        """Some release is active.

        Raises
        ------
        ReleaseError
            Saying what to do.
        """
        if self.active_manifest() is None:
            raise self._no_release()

    def has_files(self) -> bool:
        """Whether any instance's bytes should be in the archive."""
        with self._database.read() as session:
            return session.scalar(select(InstanceRow.id).where(InstanceRow.path.is_not(None)).limit(1)) is not None

    def _no_release(self) -> ReleaseError:
        remedy = "start `dicom-node up` once" if self._database.embedded else "run `dicom-node db upgrade`"
        return ReleaseError(f"no bundle release is active in the ledger: {remedy}")

    def record(self, received: Received) -> tuple[str, bool]:
        """The instance is in the ledger, committed.

        Returns ``new``, ``duplicate`` or ``conflict``, and whether a worker may have work now. What a run asked for is
        screened for the run; what a run holds and a peer then sends is the peer's from now on, and screened once.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            Where the database does not take it; nothing was written.
        ReleaseError
            Where no release is active.
        """
        try:
            return self._record(received)
        except IntegrityError:  # another association recorded the same instance a moment ago
            return self._record(received)

    def _record(self, received: Received) -> tuple[str, bool]:
        with self._database.write() as session:
            asked = asked_for(session, received)
            # Locked: what a run held is not purged between this look and the commit.
            known = session.scalar(
                select(InstanceRow).filter_by(sop_instance_uid=received.sop_instance_uid).with_for_update()
            )
            if known is not None:
                kind = "duplicate" if known.sha256 == received.sha256 else "conflict"
                if asked is not None:
                    land_known(session, asked, known, received)
                    return kind, False
                session.add(
                    ResendRow(
                        instance_id=known.id,
                        kind=kind,
                        sha256=received.sha256,
                        path=received.file.path if received.file else None,
                        calling_ae_title=storable(received.calling_ae_title),
                        received_at=db_now(),
                    )
                )
                return kind, make_live(session, known, received, self._policy)
            release_id = self._active_release(session)
            admission = received.admission
            instance = InstanceRow(
                sop_instance_uid=received.sop_instance_uid,
                sop_class_uid=received.sop_class_uid,
                study_instance_uid=received.study_instance_uid,
                series_instance_uid=received.series_instance_uid,
                transfer_syntax_uid=received.transfer_syntax_uid,
                sha256=received.sha256,
                size_bytes=received.size_bytes,
                path=received.file.path if received.file else None,
                calling_ae_title=storable(received.calling_ae_title),
                modality=storable(received.modality),
                view=admission.view,
                body_part=admission.body_part,
                evidence=list(admission.evidence),
                notes=[],
                patient_id=storable(received.patient_id),
                patient_name=storable(received.patient_name),
                accession_number=storable(received.accession_number),
                study_date=storable(received.study_date),
                patient_sex=storable(received.patient_sex),
                patient_age=received.patient_age,
                manufacturer=storable(received.manufacturer),
                model_name=storable(received.model_name),
                received_at=db_now(),
            )
            session.add(instance)
            session.flush()
            state = State.WAITING if admission.admitted else State.DECLINED
            screening = ScreeningRow(
                instance_id=instance.id,
                release_id=release_id,
                purpose=Purpose.LIVE if asked is None else Purpose.RETROSPECTIVE,
                delivers=asked is None or asked.delivers,
                state=state,
                reason=admission.reason,
            )
            session.add(screening)
            session.flush()
            log_transition(session, screening.id, None, state, 0)
            if asked is not None:
                land(session, asked, received, screening.id)
            else:
                arrive(session, received)
            return "new", state is State.WAITING and asked is None

    def _active_release(self, session: Session) -> int:
        """The release for a new screening; no other is activated before the caller's transaction ends.

        Otherwise a screening could begin to wait for a release that `activate_release` has just left behind.
        """
        active = select(ReleaseRow.id).filter_by(active=True).with_for_update(read=True)
        # PostgreSQL: who waited here for another activation does not see the new release before the second look.
        release_id = session.scalar(active) or session.scalar(active)
        if release_id is None:
            raise self._no_release()
        return release_id

    def summary(self, sop_instance_uid: str) -> Summary | None:
        """The own screening of an instance and its products by kind; None where the instance is not known."""
        with self._database.read() as session:
            screening = session.scalars(
                select(ScreeningRow)
                .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
                .where(InstanceRow.sop_instance_uid == sop_instance_uid, ScreeningRow.purpose.in_(OWN))
                .order_by(ScreeningRow.id.desc())
            ).first()
            if screening is None:
                return None
            outcomes = session.scalars(
                select(OutcomeRow).filter_by(screening_id=screening.id).order_by(OutcomeRow.position)
            ).all()
            products = session.scalars(
                select(ObjectRow)
                .where(
                    or_(ObjectRow.screening_id == screening.id, ObjectRow.report_id == screening.report_id),
                    ObjectRow.kind != ObjectKind.MAP,
                )
                .order_by(ObjectRow.id.desc())  # the first that was made of a report counts
            ).all()
        return Summary(
            state=State(screening.state),
            reason=screening.reason,
            targets=target_results(outcomes),
            sop_instance_uids={row.kind: row.sop_instance_uid or "" for row in products},
            objects={row.kind: row.path for row in products},
        )

    def counts(self) -> dict[str, int]:
        """Instances by the state of their own screening, and `received`, `duplicates`, `conflicts`.

        `received` counts the instances themselves, so that one without a screening breaks the invariant
        received = delivered + withheld + declined + failed + waiting instead of vanishing from both sides.
        """
        by_state = (
            select(ScreeningRow.state, func.count())
            .where(ScreeningRow.purpose.in_(OWN), ScreeningRow.replaced_by.is_(None))
            .group_by(ScreeningRow.state)
        )
        with self._database.read() as session:
            states = {str(state): count for state, count in session.execute(by_state).tuples()}
            resends = {
                str(kind): count
                for kind, count in session.execute(
                    select(ResendRow.kind, func.count()).group_by(ResendRow.kind)
                ).tuples()
            }
            received = session.scalar(select(func.count(InstanceRow.id))) or 0
        return {
            "received": received,
            **{state.value: states.get(state, 0) for state in State},
            "duplicates": resends.get("duplicate", 0),
            "conflicts": resends.get("conflict", 0),
        }
