"""An association over which no response gets lost."""

import time

import pytest
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from dicom_node.association import associated
from dicom_node.config import Peer
from dicom_node.demo.pacs import free_port
from dicom_node.pacs import QUERY


@pytest.fixture
def peer():
    scp = AE("PACS")
    scp.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    port = free_port()
    server = scp.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, lambda _: iter(()))])
    yield Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port)
    server.shutdown()


def message(responded_to):
    found = C_FIND()
    found.MessageID, found.MessageIDBeingRespondedTo = (None, 7) if responded_to else (7, None)
    found.AffectedSOPClassUID = QUERY
    return found


def test_the_association_s_own_thread_leaves_a_response_to_the_call_that_waits_for_it(peer):
    with associated(peer, [QUERY], ae_title="NODE", timeout_s=5) as association:
        response = message(responded_to=True)
        association.dimse.msg_queue.put((1, response))
        time.sleep(0.2)  # the thread looks every millisecond or so
        assert association.dimse.get_msg(block=True) == (1, response)


def test_it_takes_a_request_and_that_alone(peer):
    with associated(peer, [QUERY], ae_title="NODE", timeout_s=5) as association:
        association._reactor_checkpoint.clear()
        time.sleep(0.1)
        request, response = message(responded_to=False), message(responded_to=True)
        association.dimse.msg_queue.put((1, request))
        association.dimse.msg_queue.put((1, response))
        assert association.dimse.get_msg(block=False) == (1, request)
        assert association.dimse.get_msg(block=False) == (None, None)
        assert association.dimse.get_msg(block=True) == (1, response)
        association._reactor_checkpoint.set()
