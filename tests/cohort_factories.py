"""A run in a ledger with an archive beside it, and a PACS that is no more than what it says and sends."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

from sqlalchemy import select

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.config import Retrospective
from dicom_node.domain import ObjectKind, Origin, RunState, StudyState
from dicom_node.ledger import Ledger
from dicom_node.maps import SUFFIX, encode_maps
from dicom_node.retrospective.settling import Settling
from dicom_node.retrospective.studies import Studies
from dicom_node.retrospective.tables import RunInstanceRow, RunRow, RunStudyRow
from dicom_node.tables import InstanceRow, ScreeningRow
from tests.ledger_factories import ADMITTED, product, received
from tests.result_factories import manifest
from tests.result_factories import prediction as answer

NOW = datetime(2026, 1, 10, 23, 0, tzinfo=UTC)


class Night:
    """Study `n` has the UID ``1.3.n`` and images ``1.2.n.1`` and so on; `pacs` says what it holds."""

    def __init__(self, folder, database, **settings):
        self.database = database
        self.archive = Archive(folder / "archive")
        self.ledger, self.claims, self.studies = Ledger(database), Claims(database), Studies(database)
        self.ledger.activate_release(manifest())
        self.settings = Retrospective(**({"window": "", "studies_per_minute": 1000} | settings))
        self.settling = Settling(database, self.archive, purge=self.settings.purge)
        self.held = {}

    def run(self, *studies, name="march", state=RunState.RUNNING, **changed):
        """A run over these studies; ``{number: images}`` says what the PACS holds of each."""
        with self.database.write() as session:
            run = RunRow(
                name=name,
                source="pacs",
                criteria={"modalities": ["CR", "DX"]},
                state=state,
                created_at=NOW,
                **changed,
            )
            session.add(run)
            session.flush()
            for number in studies:
                session.add(
                    RunStudyRow(
                        run_id=run.id, study_instance_uid=f"1.3.{number}", study_date="20260109", state=StudyState.FOUND
                    )
                )
            return run.id

    def claim(self, holder="fetcher", now=NOW, lease_s=60):
        return self.studies.claim(holder, lease_s, self.settings, now)

    def begin(self, images=1, way="move"):
        """The next study is claimed, its images are expected and looked for, and it is fetched by that way."""
        claim = self.claim()
        number = claim.study_instance_uid.rpartition(".")[2]
        told = [
            SimpleNamespace(
                sop_instance_uid=f"1.2.{number}.{one}", series_instance_uid=f"1.4.{number}", sop_class_uid=None
            )
            for one in range(1, images + 1)
        ]
        self.studies.expect(claim, told)
        missing = [row.sop_instance_uid for row in self.studies.look(claim)]
        self.studies.on_way(claim, way)
        return claim, missing

    def arrive(self, uid, *, origin=Origin.SENT, admission=ADMITTED, run_study_id=None, sender="MODALITY", salt=b""):
        """The object comes to the listener, or is fetched; what the ledger said."""
        content = uid.encode() + salt
        file = self.archive.store(content) if admission.admitted else None
        number = uid.split(".")[2]
        return self.ledger.record(
            received(
                admission=admission,
                sha256=file.sha256 if file else "d" * 64,
                sop_instance_uid=uid,
                study_instance_uid=f"1.3.{number}",
                series_instance_uid=f"1.4.{number}",
                file=file,
                size_bytes=len(content),
                origin=origin,
                run_study_id=run_study_id,
                calling_ae_title=sender,
                senders=("pacs",) if sender == "PACS" else (),
            )
        )

    def screen(self, *, flagged=False):
        """A worker claims what is next and sees it through."""
        claim = self.claims.claim("worker", 60)
        if claim is None:
            return None
        given = answer(0.9 if flagged else 0.1, 0.5, release=claim.manifest.release)
        maps = self.archive.store(encode_maps(given.maps, claim.screening_id), SUFFIX)
        self.claims.save_prediction(claim, given, maps)
        if claim.delivers or flagged:
            self.claims.save_heatmap(claim, product(ObjectKind.HEATMAP, f"2.25.{claim.screening_id}"), ["pacs"], [])
        else:
            self.claims.withhold(claim)
        return claim

    def settle(self):
        """Until there is nothing more to settle."""
        while self.settling.settle(NOW):
            pass

    def screening(self, uid):
        """The instance's own screening."""
        with self.database.read() as session:
            return session.scalars(
                select(ScreeningRow)
                .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
                .where(
                    InstanceRow.sop_instance_uid == uid,
                    ScreeningRow.replaced_by.is_(None),
                    ScreeningRow.purpose != "shadow",
                )
            ).one()

    def study(self, number, run_id=1):
        with self.database.read() as session:
            return session.scalars(
                select(RunStudyRow).filter_by(run_id=run_id, study_instance_uid=f"1.3.{number}")
            ).one()

    def expected(self, number, run_id=1):
        """By SOP Instance UID, the rows of what the study holds."""
        study_id = self.study(number, run_id).id
        with self.database.read() as session:
            rows = session.scalars(select(RunInstanceRow).filter_by(study_id=study_id))
            return {row.sop_instance_uid: row for row in rows}

    def instance(self, uid):
        with self.database.read() as session:
            return session.scalars(select(InstanceRow).filter_by(sop_instance_uid=uid)).one()
