"""The role `web`: serves the worklist's pages until told to stop."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from dicom_node.archive import Archive
from dicom_node.database import Database
from dicom_node.decoding import decoders
from dicom_node.roles import StartError, announce_ready
from dicom_node.worklist.accounts import Accounts
from dicom_node.worklist.app import make_app
from dicom_node.worklist.pictures import Pictures

if TYPE_CHECKING:
    from dicom_node.config import Settings

log = logging.getLogger(__name__)

_END_S = 5
_DECODERS = 2  # one for the study that is opened, whatever pictures the worklist wants


def serve(settings: Settings, stop: threading.Event) -> None:
    """Answer browsers and programs until told to stop.

    Raises
    ------
    StartError
        Where the address cannot be had, or the certificate not be used.
    """
    web = settings.web
    if not web.port:
        raise StartError("[web] port is 0: no pages are served")
    database = Database(settings.database_dsn)
    bound = _bind(web.host, web.port)
    with decoders(settings, processes=_DECODERS) as children:
        app = make_app(settings, database, Pictures(children, Archive(settings.archive_dir), settings))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=web.behind_proxy,
                forwarded_allow_ips=list(web.proxies) if web.behind_proxy else None,
                ssl_certfile=str(web.tls_certificate) if web.tls_certificate else None,
                ssl_keyfile=str(web.tls_key) if web.tls_key else None,
                timeout_graceful_shutdown=_END_S,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        try:
            server.config.load()
        except OSError as error:
            raise StartError(f"the certificate or its key cannot be used: {error.strerror}; see [web]") from error
        # Not in the main thread: there it would take the signals that end the role.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        log.info("the worklist is at %s", web.url)
        if (token := Accounts(database).first_link()) is not None:
            log.info("nobody can log in yet; the first administrator, within a day: %s/welcome/%s", web.url, token)
        announce_ready()
        while not stop.wait(1.0):
            if not thread.is_alive():
                raise StartError("the web server ended by itself")
        server.should_exit = True
        thread.join(_END_S + 1)
    database.close()


def _bind(host: str, port: int) -> socket.socket:
    """A socket that is bound already: that the port is taken is told at once, and by us."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise StartError(f"cannot serve on {host}:{port}: {error.strerror}; see [web] host and port") from error
    return bound
