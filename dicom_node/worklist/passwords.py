"""Passwords: which are taken, how they are kept and checked, and how often one may be tried.

A check takes as long where there is nothing to check.
"""

from __future__ import annotations

import math
import threading
import unicodedata
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, select

from dicom_node.worklist.tables import LoginFailureRow

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

SHORTEST, LONGEST = 12, 256
WINDOW = timedelta(minutes=15)
MOST_OF_NAME, MOST_OF_ADDRESS = 5, 20
HASHER = PasswordHasher()
# Each hash takes 64 MiB: many log-ins at once wait for each other instead of filling the memory.
_TURNS = threading.BoundedSemaphore(4)


def fault_of(password: str, name: str) -> str | None:
    """What is wrong with a new password of the person `name`, and what to do; None where nothing is."""
    if not SHORTEST <= len(password) <= LONGEST:
        return f"a password has {SHORTEST} to {LONGEST} characters: choose one"
    if len(set(password)) == 1:
        return "the password is one character repeated: choose another"
    if password.strip().lower() == name.strip().lower():
        return "the password is the name: choose another"
    return "the password holds what is no character: choose another" if _plain(password) is None else None


def hashed(password: str) -> str:
    """The hash to be kept: argon2id, with its salt and parameters."""
    with _TURNS:
        return HASHER.hash(_plain(password) or b"")


def is_right(kept: str | None, password: str) -> bool:
    """Whether the password is the one of this hash; without a hash it is not, which takes the same time."""
    dummy = _dummy(HASHER)  # made the first time, whoever is asked for
    given = _plain(password) if len(password) <= LONGEST else None
    with _TURNS:
        try:
            HASHER.verify(dummy if kept is None else kept, given or b"")
        except (VerificationError, InvalidHashError):
            return False
    return kept is not None and bool(given)


def is_outdated(kept: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(kept)


def count_try(session: Session, name_key: str, address: str, now: datetime) -> int:
    """The try counts as refused, until it is forgotten; 0, or the seconds to wait where it comes too soon to count.

    It counts before it is looked at: of those that come at the same time not all can be the last one allowed.
    """
    name_sha256 = digest(name_key)
    session.execute(delete(LoginFailureRow).where(LoginFailureRow.at <= now - WINDOW))
    wait = max(
        _wait(session, LoginFailureRow.name_sha256 == name_sha256, MOST_OF_NAME, now),
        _wait(session, LoginFailureRow.address == address, MOST_OF_ADDRESS, now),
    )
    if not wait:
        session.add(LoginFailureRow(name_sha256=name_sha256, address=address, at=now))
    return wait


def forget_tries(session: Session, name_key: str) -> None:
    """Those of a name that proved to be its own count no more."""
    session.execute(delete(LoginFailureRow).filter_by(name_sha256=digest(name_key)))


def digest(secret: str) -> str:
    """What is kept instead of a token or of a name that somebody typed."""
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _wait(session: Session, of: ColumnElement[bool], most: int, now: datetime) -> int:
    """The seconds until fewer than `most` log-ins were refused in the window; 0 where it is so now."""
    newest_first = select(LoginFailureRow.at).where(of).order_by(LoginFailureRow.at.desc())
    at = session.scalar(newest_first.offset(most - 1).limit(1))
    return 0 if at is None else max(1, math.ceil((min(at, now) + WINDOW - now).total_seconds()))


def _plain(password: str) -> bytes | None:
    """The bytes to be hashed, the same from every keyboard; None where it is no text."""
    try:
        return unicodedata.normalize("NFKC", password).encode()
    except UnicodeEncodeError:
        return None


@cache
def _dummy(hasher: PasswordHasher) -> str:
    return hasher.hash(b"nobody's")
