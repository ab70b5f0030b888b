"""In which state a delivery ends, whatever a PACS answers: a real ledger, a real listener, real objects."""

import contextlib
import threading
import time

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, EnhancedSRStorage, SecondaryCaptureImageStorage
from pynetdicom import evt
from sqlalchemy import select, update

from dicom_node.commitment import FailureReason
from dicom_node.config import Peer, Settings
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.delivery import deliver_due
from dicom_node.demo.pacs import OrthancPacs, free_port
from dicom_node.roles import make_depot, start_listener
from dicom_node.tables import CommitmentRow, DeliveryRow, DeliveryTryRow, ObjectRow, ScreeningRow, db_now
from tests.peers import CommittingPeer
from tests.study_factories import Desk


@pytest.fixture(scope="module")
def children():
    with decoders(Settings(), 1) as found:
        yield found


class Node:
    """Heatmap and report of one image are due at the peer, and the node hears what the peer reports."""

    def __init__(self, folder, children, peer):
        self.database = Database(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.database.upgrade()
        self.settings = Settings(
            database_url=self.database.url,
            archive_dir=folder / "archive",
            port=free_port(),
            peers=(peer,),
            network_timeout_s=2.0,
            commit_timeout_s=60.0,
            study_quiet_s=0,
        )
        self.desk = Desk(folder, self.database, children, peers=(peer,))
        self.desk.take(1)
        self.desk.screen()
        self.depot = make_depot(self.settings, self.database, children)
        assert self.depot.reporter.issue_due() == 1

    def deliver(self):
        """What is due, or waits for its next try, is tried."""
        with self.database.write() as session:
            session.execute(update(DeliveryRow).values(not_before=db_now()))
        return deliver_due(self.depot)

    def until_settled(self):
        """The states in which the deliveries end."""
        for _ in range(20):
            if not self.deliver():
                break
        return self.states()

    def states(self):
        return self.depot.outbox.counts()["pacs"]

    @property
    def screening(self):
        with self.database.read() as session:
            return session.scalars(select(ScreeningRow.state)).one()

    @contextlib.contextmanager
    def listening(self):
        listener = start_listener(self.settings, self.database)
        try:
            yield
        finally:
            listener.stop()

    def rows(self, model):
        with self.database.read() as session:
            return session.scalars(select(model).order_by(model.id)).all()


@pytest.fixture
def node(tmp_path, children):
    made = []

    def make(peer):
        made.append(Node(tmp_path, children, peer))
        return made[-1]

    yield make
    for one in made:
        one.database.close()


def found_at(peer):
    """C-FIND answers with what the peer has stored."""

    def find(event):
        if event.identifier.SOPInstanceUID in peer.stored:
            answer = Dataset()
            for keyword in ("QueryRetrieveLevel", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(answer, keyword, event.identifier[keyword].value)
            yield 0xFF00, answer
        yield 0x0000, None

    return find


def querying(**options):
    """A peer that finds what it has stored."""
    peer = None

    def find(event):
        yield from found_at(peer)(event)

    peer = CommittingPeer(find=find, **options)
    return peer


def later(work):
    """Work beside the answer to the request."""
    threading.Thread(target=work, daemon=True).start()
    return 0x0000


@pytest.mark.usefixtures("orthanc_program")
def test_a_real_orthanc_commits_to_heatmap_and_report(tmp_path, children, node):
    port = free_port()
    ours = Peer(name="node", ae_title="CXRSCREEN", host="127.0.0.1", port=port)
    with OrthancPacs(tmp_path / "orthanc", peers=[ours]) as orthanc:
        one = node(Peer(name="pacs", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port, destination=True))
        one.settings = one.settings.model_copy(update={"port": port})
        with one.listening():
            assert one.deliver() == 2
            until = time.monotonic() + 20
            while one.states() != {"committed": 2}:
                assert time.monotonic() < until, one.states()
                time.sleep(0.02)
        assert one.screening == "delivered"
        (row,) = one.rows(CommitmentRow)
        assert row.answered_at is not None


@pytest.mark.usefixtures("orthanc_program")
def test_with_the_listener_down_when_the_report_comes_a_real_orthanc_is_asked_anew_and_then_read_back(
    tmp_path, children, node
):
    """Orthanc reports once and never again: each request has a Transaction UID of its own."""
    with OrthancPacs(tmp_path / "orthanc") as orthanc:
        one = node(Peer(name="pacs", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port, destination=True))
        orthanc.introduce(Peer(name="node", ae_title="CXRSCREEN", host="127.0.0.1", port=one.settings.port))
        assert one.until_settled() == {"read_back": 2}
    assert one.screening == "delivered"
    transactions = one.rows(CommitmentRow)
    assert len({row.transaction_uid for row in transactions}) == 2
    assert {row.answered_at for row in transactions} == {None}


def test_a_report_on_the_association_on_which_it_was_asked_for_counts(node):
    peer = CommittingPeer(action_status=lambda event: later(lambda: _soon(peer, event)))
    with peer:
        one = node(peer.peer)
        one.deliver()
        assert peer.answered.wait(5)
        assert peer.answers == [0x0000]
        assert one.states() == {"committed": 2}
    assert one.screening == "delivered"


def _soon(peer, event):
    time.sleep(0.1)  # after the request was answered, while the node holds the association open
    peer.report_on(event.assoc, event.action_information)


def test_a_report_that_overtakes_the_answer_to_its_request_counts(node):
    with CommittingPeer(action_status=lambda event: _first(event)) as peer:
        one = node(peer.peer)

        def _first(event):
            peer.report_to("CXRSCREEN", one.settings.port, event.action_information)
            return 0x0000

        with one.listening():
            one.deliver()
        assert peer.answers == [0x0000]
        assert one.states() == {"committed": 2}


@pytest.mark.parametrize("status", [0x0110, 0x0122, 0x0213])
def test_where_commitment_is_refused_a_query_proves_it(node, status):
    with querying(action_status=status) as peer:
        one = node(peer.peer)
        assert one.until_settled() == {"read_back": 2}
    assert one.screening == "delivered"


def test_where_commitment_is_not_offered_a_query_proves_it(node):
    with querying(commits=False) as peer:
        assert node(peer.peer).until_settled() == {"read_back": 2}
        assert peer.requests == []


def test_where_neither_is_offered_it_is_sent_and_unproven(node):
    with CommittingPeer(commits=False, queries=False) as peer:
        one = node(peer.peer)
        assert one.until_settled() == {"unproven": 2}
    assert one.screening == "delivered"


def test_what_neither_a_report_nor_a_query_shows_is_unproven_and_says_so(node):
    with CommittingPeer() as peer:  # takes each request and never reports; finds nothing
        one = node(peer.peer)
        assert one.until_settled() == {"unproven": 2}
        assert len(peer.requests) == 2
        assert len({request.TransactionUID for request in peer.requests}) == 2
    assert "pacs does not find the object by C-FIND" in one.depot.outbox.last_errors()["pacs"]
    assert one.screening == "delivered"


def test_what_the_peer_took_and_has_not_got_is_sent_again_under_the_same_uid(node):
    with CommittingPeer(action_status=lambda event: later(lambda: _report(event))) as peer:
        one = node(peer.peer)

        def _report(event):
            peer.failures = (
                {peer.stored[0]: int(FailureReason.NO_SUCH_OBJECT_INSTANCE)} if len(peer.stored) == 2 else {}
            )
            peer.report_to("CXRSCREEN", one.settings.port, event.action_information)

        with one.listening():
            one.deliver()
            _await(lambda: one.states() == {"committed": 1, "pending": 1})
            one.deliver()
            _await(lambda: one.states() == {"committed": 2})
        assert peer.stored == [peer.stored[0], peer.stored[1], peer.stored[0]]
    assert one.screening == "delivered"


def test_a_uid_that_the_peer_knows_as_another_object_is_rejected_and_needs_a_person(node):
    """A reused UID: PS3.4 J's class and instance conflict."""
    with CommittingPeer(action_status=lambda event: later(lambda: _report(event))) as peer:
        one = node(peer.peer)

        def _report(event):
            peer.failures = {peer.stored[1]: int(FailureReason.CLASS_INSTANCE_CONFLICT)}
            peer.report_to("CXRSCREEN", one.settings.port, event.action_information)

        with one.listening():
            one.deliver()
            _await(lambda: one.states() == {"committed": 1, "rejected": 1})
    assert one.screening == "failed"
    with one.database.read() as session:
        assert session.scalars(select(ScreeningRow.reason)).one() == "delivery_rejected"


def test_a_report_that_comes_late_and_twice_counts_once(node):
    requests = []
    with CommittingPeer(action_status=lambda event: requests.append(event.action_information) or 0x0000) as peer:
        one = node(peer.peer)
        one.until_settled()
        assert one.states() == {"unproven": 2}
        with one.listening():
            for _ in range(2):
                peer.report_to("CXRSCREEN", one.settings.port, requests[0])
        assert peer.answers == [0x0000, 0x0000]
        assert one.states() == {"committed": 2}


@pytest.mark.parametrize("accepted", [ComprehensiveSRStorage, EnhancedSRStorage], ids=lambda uid: uid.name)
def test_a_peer_that_takes_no_comprehensive_3d_sr_gets_the_report_in_the_class_that_it_takes(node, accepted):
    with querying(sop_classes=(accepted, SecondaryCaptureImageStorage), commits=False) as peer:
        one = node(peer.peer)
        assert one.until_settled() == {"read_back": 2}
        first, other = (row for row in one.rows(ObjectRow) if row.kind == "report")
        assert other.sop_class_uid == accepted
        assert other.sop_instance_uid in peer.stored
        assert first.sop_instance_uid not in peer.stored
    assert one.screening == "delivered"


def test_a_peer_that_takes_no_report_gets_the_heatmap_and_the_rest_needs_a_person(node):
    with querying(sop_classes=(SecondaryCaptureImageStorage,), commits=False) as peer:
        one = node(peer.peer)
        assert one.until_settled() == {"read_back": 1, "rejected": 1}
    assert one.screening == "failed"
    assert "accepts no SR SOP Class" in one.depot.outbox.last_errors()["pacs"]


def test_a_peer_that_is_down_when_it_is_asked_for_proof_is_asked_when_it_is_back(node):
    with querying(commits=False, queries=False) as peer:
        one = node(peer.peer)
    port = one.settings.peers[0].port
    one.deliver()
    assert one.states() == {"pending": 2}
    with one.database.write() as session:  # as if they had been sent before it went down
        session.execute(update(DeliveryRow).values(state="sent"))
    one.deliver()
    assert one.states() == {"sent": 2}
    details = [row.detail for row in one.rows(DeliveryTryRow)]
    assert len(details) == 4
    assert all(str(port) in detail for detail in details)


def _await(condition, timeout_s=10.0):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_object_over_which_the_peer_aborts_keeps_none_of_the_others_back(node):
    def abort_over_heatmaps(event):
        if event.request.AffectedSOPClassUID == SecondaryCaptureImageStorage:
            event.assoc.abort()
        peer.stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    peer = CommittingPeer(commits=False, queries=False)
    peer._handlers[0] = (evt.EVT_C_STORE, abort_over_heatmaps)
    with peer:
        one = node(peer.peer)
        assert one.deliver() == 2
        heatmap, report = one.rows(DeliveryRow)
        assert [(row.state, row.tries) for row in (heatmap, report)] == [("pending", 1), ("pending", 0)]
        assert report.not_before < heatmap.not_before
        with one.database.write() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.id == report.id).values(not_before=db_now()))
        assert deliver_due(one.depot) == 1
    assert one.states() == {"pending": 1, "unproven": 1}
