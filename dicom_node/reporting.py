"""Reports of studies, made from what the ledger holds as soon as a study is quiet."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dicom_node.domain import DecoderError, NodeError, ObjectKind, place_of
from dicom_node.maps import MissingFileError, UnreadableFileError, read_maps
from dicom_node.products import StudyImage, store_study_report
from dicom_node.report import SOP_CLASSES
from dicom_node.routing import destinations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from dicom_node.archive import Archive, Product
    from dicom_node.children import Children
    from dicom_node.config import Settings
    from dicom_node.reports import Draft, Form, Reports, Source

log = logging.getLogger(__name__)

_BATCH = 16
_MOST_CHILDREN = 2  # that one image may cost: once may be chance


class Reporter:
    """Makes what is due; several may do so at once, as the same ledger gives the same bytes."""

    def __init__(self, reports: Reports, archive: Archive, children: Children, settings: Settings) -> None:
        self._reports = reports
        self._archive = archive
        self._children = children
        self._settings = settings

    def issue_due(self, on_step: Callable[[], None] = lambda: None) -> int:
        """Each study that is due has its report, or the screenings that kept it from that are `failed`.

        Returns of how many studies it was tried. `on_step` is called before each wait for a child.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            The database fails: no study's fault. Where the disk does, the studies wait.
        """
        found = self._reports.due(self._settings.study_quiet_s, _BATCH)
        begun: list[tuple[Draft, Future[Product] | NodeError]] = []
        for due in found:
            try:
                draft = self._reports.draft(due)
            except (LookupError, ValueError) as error:  # what the ledger holds of this one study cannot be used
                fault = _UnforeseenError(f"nothing can be drafted from the ledger: {place_of(error)}")
                log.error("a study has no report: %s", fault)  # noqa: TRY400
                self._reports.give_up(due, fault)
                continue
            if draft.untold:
                begun.append((draft, self._begin(draft, draft.sources)))
        for draft, future in begun:
            on_step()
            try:
                made = _result(future)
            except NodeError as error:
                self._not_built(draft, error, on_step)
            else:
                self._issue(draft, made)
        return len(begun)

    def in_form(self, report_id: int, sop_class_uid: str, delivery_id: int) -> Form:
        """The same report as an object of another SR SOP Class, made once, to which the delivery is turned.

        Raises
        ------
        NodeError
            Where it cannot be made, or is not to be sent any more.
        """
        if (known := self._reports.turn(delivery_id, report_id, sop_class_uid)) is not None:
            return known
        draft = self._reports.draft_of(report_id)
        made = _result(self._begin(draft, draft.sources, sop_class_uid))
        return self._reports.add_form(report_id, made, delivery_id)

    def _issue(self, draft: Draft, made: Product) -> None:
        wanted = destinations(
            self._settings,
            ObjectKind.REPORT,
            flagged=any(source.flagged for source in draft.sources),
            senders={source.calling_ae_title for source in draft.sources},
        )
        # It follows those that it replaces, but not to a peer that left the settings, where it could never arrive.
        there = {peer.name for peer in self._settings.destinations}
        replaced = tuple(
            replace(one, destinations=tuple(name for name in one.destinations if name in there))
            for one in draft.predecessors
        )
        if self._reports.issue(replace(draft, predecessors=replaced), made, wanted) is not None:
            log.info("report %s of %d images", made.sop_instance_uid, len(draft.sources))

    def _not_built(self, draft: Draft, error: NodeError, on_step: Callable[[], None]) -> None:
        """Those of the new images are at fault with which alone no report can be made; where each could, all are."""
        faults = {}
        for source in draft.untold if len(draft.sources) > 1 else ():
            on_step()
            try:
                _result(self._begin(draft, [source]))
            except NodeError as alone:
                faults[source.screening_id] = alone
        for source in draft.untold:
            fault = faults.get(source.screening_id) if faults else error
            if fault is None:
                continue
            log.warning("screening %d: no report: %s", source.screening_id, fault)
            if fault.permanent:
                self._reports.fail(source.screening_id, fault)
                continue
            self._reports.put_off(
                source.screening_id,
                fault,
                pause_s=self._settings.retry_base_s,
                counted=isinstance(fault, DecoderError),
                max_failures=min(_MOST_CHILDREN, self._settings.max_attempts),
            )

    def _begin(
        self, draft: Draft, sources: Sequence[Source], sop_class_uid: str = SOP_CLASSES[0]
    ) -> Future[Product] | NodeError:
        """What a child will have built; an error where the archive does not hold what it is built of."""
        try:
            images = [self._image(source) for source in sources]
        except NodeError as error:
            return error
        build = partial(
            store_study_report,
            node_ae_title=self._settings.ae_title,
            sop_class=sop_class_uid,
            predecessors=[predecessor.object_in(sop_class_uid) for predecessor in draft.predecessors],
            codes=self._settings.codes,
        )
        return self._children.submit(build, self._archive, images, draft.manifest_json)

    def _image(self, source: Source) -> StudyImage:
        stored = source.stored
        return StudyImage(
            file=self._archive.locate(source.path),
            prediction=replace(stored.prediction, maps=read_maps(self._archive, stored.maps)),
            predicted_at=stored.predicted_at,
            heatmap_sop_class_uid=source.heatmap_sop_class_uid,
            heatmap_sop_instance_uid=source.heatmap_sop_instance_uid,
        )


def _result(future: Future[Product] | NodeError) -> Product:
    """What was built.

    Raises
    ------
    NodeError
        Also for an error that nobody foresaw, which is held against the study.
    """
    if isinstance(future, NodeError):
        raise future
    try:
        return future.result()
    except NodeError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("an image of the study is not in the archive") from error
    except OSError as error:
        raise UnreadableFileError(f"the archive does not serve a report: {error.strerror}") from error
    except Exception as error:
        raise _UnforeseenError(f"the report could not be built: {place_of(error)}") from error


class _UnforeseenError(NodeError):
    reason = "report"
