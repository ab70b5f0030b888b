"""Bells in a real Redis."""

import base64
import json
import threading
import time

import pytest

from dicom_node.dispatch import LIVE, RETROSPECTIVE, Bells, BrokerError, Ringer, await_broker, check_broker
from dicom_node.roles import Fault
from tests.e2e.harness import wait_until
from tests.servers import RedisServer


@pytest.fixture
def client(redis_server):
    with redis_server.client() as found:
        found.flushall()
        yield found
        found.flushall()


@pytest.fixture
def bells(redis_server, client):
    found = Bells(redis_server.dsn)
    yield found
    found.close()


def test_a_bell_is_a_message_without_content(bells, client):
    bells.ring(LIVE)
    message = json.loads(client.lindex("live", 0))
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "dicom_node.bell"
    arguments, keywords, options = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == ([], {})
    assert set(options.values()) == {None}


def test_top_up_rings_only_for_what_has_no_bell(bells, client):
    bells.ring(LIVE, 3)
    assert bells.top_up({LIVE: 5, RETROSPECTIVE: 2}) == 4
    assert bells.top_up({LIVE: 5, RETROSPECTIVE: 2}) == 0
    assert (client.llen("live"), client.llen("retrospective")) == (5, 2)


def test_a_flushed_broker_takes_bells_as_before(bells, client):
    bells.ring(LIVE)
    client.flushall()
    bells.ring(LIVE)
    assert client.llen("live") == 1


def test_a_ringer_never_keeps_its_caller_and_tells_once(redis_server, client, caplog):
    with RedisServer() as server:
        ringer = Ringer(server.dsn)
        server.kill()
        started = time.monotonic()
        for _ in range(1000):
            ringer.ring()
        assert time.monotonic() - started < 0.5
        wait_until(lambda: "the sweep rings" in caplog.text, what="the warning", timeout_s=30)
        server.start()
        with server.client() as own:

            def arrived():
                ringer.ring()
                return own.llen("live")

            wait_until(arrived, what="a bell", timeout_s=30, poll_s=0.2)
        ringer.close()
    assert caplog.text.count("the sweep rings") == 1
    assert server.password not in caplog.text


@pytest.mark.parametrize(
    ("change", "told", "permanent"),
    [
        (lambda server: server.dsn.replace("redis://:", "redis://:x"), "refuses the password", True),
        (lambda server: server.url, "refuses the password", True),
        (lambda server: server.dsn.removesuffix("/0") + "/99", "DB index", True),
        (lambda server: "redis://:geheim@127.0.0.1:1/0", "does not answer", False),
        (lambda server: "redis://:geheim@nowhere.invalid:1/0", "does not answer", False),
        (lambda server: "amqp://u:geheim@h", "an example: redis://", True),
    ],
)
def test_a_broker_that_cannot_be_used_is_named_without_its_password(redis_server, change, told, permanent):
    with pytest.raises(BrokerError, match=told) as raised:
        check_broker(change(redis_server))
    assert raised.value.permanent is permanent
    assert "geheim" not in str(raised.value)
    assert redis_server.password not in str(raised.value)


def test_the_broker_of_another_ledger_is_refused_by_name(redis_server, client):
    check_broker(redis_server.dsn, "one")
    check_broker(redis_server.dsn, "one")
    check_broker(redis_server.dsn)  # who only looks is not refused
    with pytest.raises(BrokerError, match="serves a node with another database") as raised:
        check_broker(redis_server.dsn, "two")
    assert raised.value.permanent
    client.flushall()
    check_broker(redis_server.dsn, "two")


def test_a_broker_that_is_down_is_waited_for_with_one_line(caplog):
    with RedisServer() as server:
        server.kill()
        stop, found = threading.Event(), []
        waiter = threading.Thread(target=lambda: found.append(await_broker(server.dsn, "one", stop, pause_s=0.05)))
        waiter.start()
        wait_until(lambda: "waiting for it" in caplog.text, what="the line")
        time.sleep(0.3)
        server.start()
        waiter.join(10)
    assert found == [True]
    assert caplog.text.count("waiting for it") == 1


def test_a_waiter_that_is_told_to_stop_stops(redis_server):
    stop = threading.Event()
    stop.set()
    assert not await_broker("redis://127.0.0.1:1/0", "one", stop)


def test_a_fault_is_told_once_and_so_is_its_end(caplog):
    caplog.set_level("INFO")
    fault = Fault("ringing")
    for _ in range(3):
        fault.tell(BrokerError("it does not answer", permanent=False))
    fault.over()
    fault.over()
    assert [record.getMessage() for record in caplog.records] == [
        "ringing pauses: it does not answer",
        "ringing goes on",
    ]
