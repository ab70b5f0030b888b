"""A node's ledger and archive with real objects in them: films that were screened, and what makes reports of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydicom import dcmread
from sqlalchemy import select

from dicom_node.archive import Archive
from dicom_node.claims import Claims
from dicom_node.config import Peer, Settings
from dicom_node.domain import ObjectKind
from dicom_node.ledger import Ledger
from dicom_node.maps import SUFFIX, encode_maps, read_maps
from dicom_node.outbox import Outbox
from dicom_node.products import store_picture
from dicom_node.reporting import Reporter
from dicom_node.reports import Reports
from dicom_node.results import encode
from dicom_node.routing import destinations
from dicom_node.tables import ObjectRow
from tests.factories import ROOT, chest_dataset, chest_pixels
from tests.ledger_factories import received
from tests.result_factories import manifest
from tests.result_factories import prediction as answer

STUDY = f"{ROOT}.1"
PACS = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, destination=True)


class Desk:
    """What the `deliver` role has, but for the network; images come in screened."""

    def __init__(self, folder, database, children, **settings):
        values = {"study_quiet_s": 0, "retry_base_s": 0.01, "archive_dir": folder / "archive"} | settings
        self.settings = Settings(database_url=database.url, **values)
        self.database = database
        self.archive = Archive(self.settings.archive_dir)
        self.ledger, self.claims, self.reports = Ledger(database), Claims(database), Reports(database)
        self.outbox = Outbox(database, retry_base_s=60, retry_max_s=60)
        self.ledger.activate_release(manifest())
        self.reporter = Reporter(self.reports, self.archive, children, self.settings)

    def take(self, number, *, pixels=None, **changed):
        """Image `number` of the study is received; the header may be `changed`."""
        uid = f"{STUDY}.{number}"
        ds = chest_dataset(pixels, **({"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.1"} | changed))
        file = self.archive.store(encode(ds))
        self.ledger.record(
            received(
                number,
                file=file,
                sha256=file.sha256,
                sop_instance_uid=str(ds.SOPInstanceUID),
                study_instance_uid=STUDY,
                series_instance_uid=uid,
            )
        )
        return str(ds.SOPInstanceUID)

    def screen(self, probability=0.8125, threshold=0.5, **changed):
        """What waits longest is screened, and its heatmap is due where the settings want it."""
        claim = self.claims.claim("worker", 60)
        given = answer(probability, threshold, release=claim.manifest.release, **changed)
        maps_file = self.archive.store(encode_maps(given.maps, claim.screening_id), SUFFIX) if given.maps else None
        self.claims.save_prediction(claim, given, maps_file)
        self.draw(claim)
        return claim

    def draw(self, claim):
        """The heatmap of a claim's stored prediction is in the ledger."""
        stored = self.claims.load_prediction(claim)
        picture = np.rint(chest_pixels() / 4095 * 255).astype(np.uint8)
        source = dcmread(self.archive.locate(claim.path), stop_before_pixels=True)
        told = replace(stored.prediction, maps=read_maps(self.archive, stored.maps))
        heatmap, notes = store_picture(
            self.archive, source, picture, told, claim.manifest_json, stored.predicted_at, heatmap_size=256
        )
        flagged = any(result.flagged for result in told.targets)
        wanted = destinations(self.settings, ObjectKind.HEATMAP, flagged=flagged, senders=[claim.calling_ae_title])
        self.claims.save_heatmap(claim, heatmap, wanted, notes)

    def read(self, product_path):
        return dcmread(self.archive.locate(product_path))


def rows(desk, model, **of):
    with desk.database.read() as session:
        return session.scalars(select(model).filter_by(**of).order_by(model.id)).all()


def reports(desk):
    return [desk.read(row.path) for row in rows(desk, ObjectRow, kind="report")]


def cited(report):
    """SOP Instance UIDs of the images and heatmaps that the report cites as evidence."""
    return {
        instance.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def predecessors(report):
    return {
        instance.ReferencedSOPInstanceUID
        for study in report.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def send_all(desk):
    for parcel in desk.outbox.claim("deliverer", 99, 60):
        desk.outbox.sent(parcel, 0)
        desk.outbox.proven(parcel, "read_back")
