"""The worklist's people: links that let them set a password, log-ins, API tokens, and the audit of all that.

Of tokens only SHA-256 digests are kept, of passwords argon2id hashes. A refused log-in counts against its name and its
address. What a person may do is for the caller to check, with `Role.allows`.
"""

from __future__ import annotations

import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from dicom_node.domain import NodeError
from dicom_node.worklist import passwords
from dicom_node.worklist.passwords import digest as _digest
from dicom_node.worklist.tables import ApiTokenRow, AuditRow, LinkRow, SessionRow, UserRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from dicom_node.database import Database

_TOKEN_BYTES = 32
_API_PREFIX = "cxr_"
_FIRST_LINK_LASTS = timedelta(hours=24)
_LINK_LASTS = timedelta(hours=72)
_USE_TOLD_EVERY = timedelta(minutes=1)
_LONGEST_NAME, _LONGEST_DETAIL, _LONGEST_UID, _LONGEST_ACTION = 64, 200, 64, 32
_THROTTLED = "too many tries"
_ALONE = "accounts"


class Role(StrEnum):
    """What a person may do; each role may do what those before it may."""

    READER = "reader"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def allows(self, other: Role) -> bool:
        """Whether a person of this role may do what asks for the `other`."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class AccountError(NodeError):
    """What was asked of an account cannot be done."""

    reason = "account"


class TooManyTriesError(AccountError):
    """So many log-ins were refused that the next is not looked at before `retry_after_s` seconds have passed."""

    permanent = False

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many log-ins were refused: try again in {-(-retry_after_s // 60)} min")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Person:
    """Who asks; without a `csrf_token` it is a program with an API token."""

    name: str
    role: Role
    csrf_token: str | None


@dataclass(frozen=True)
class LinkFor:
    """What a link is for: to set the password of the user `name`, or without a name that of the first administrator."""

    name: str | None


@dataclass(frozen=True)
class Account:
    """A user as a page shows it."""

    name: str
    role: Role
    active: bool
    has_password: bool
    created_at: datetime
    created_by: str


@dataclass(frozen=True)
class ApiToken:
    """An API token that lets in, as a page shows it."""

    id: int
    name: str
    created_at: datetime
    last_used_at: datetime | None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Accounts:
    """Queries and changes of all that lets people in. Every change is a transaction together with its audit row.

    Where a method takes `by`, that is the name of who asked for the change, and `address` where that came from.
    Each that changes something raises AccountError, and changes nothing, where it says what is wrong.
    """

    def __init__(
        self, database: Database, *, session_hours: float = 12.0, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self._database = database
        self._session_lasts = timedelta(hours=session_hours)
        self._clock = clock

    def first_link(self) -> str | None:
        """The token of a new link for the first administrator, the older ones end; None where there is one already."""
        with self._database.write(alone=_ALONE) as session:
            return None if _has_administrator(session) else self._new_link(session, None, _FIRST_LINK_LASTS)

    def invite(self, name: str, role: Role, by: str, *, address: str = "") -> str:
        """The token of a link by which the user sets a password; older links of the user end.

        Who is not there yet is added. Who is keeps the password until the link is used.

        Raises
        ------
        AccountError
            Where the name cannot be one, or is that of a user who is inactive or has another role.
        """
        name = _checked_name(name, "a name")
        with self._database.write(alone=_ALONE) as session:
            user = _find(session, name)
            if user is None:
                user = UserRow(name=name, role=role.value, active=True, created_at=self._clock(), created_by=_clip(by))
                session.add(user)
                session.flush()
            elif not user.active:
                raise AccountError(f"{user.name} is inactive: activate the user first")
            elif user.role != role:
                raise AccountError(
                    f"{user.name} is there already, as {user.role}: change the role, or take another name"
                )
            self._note(session, by, "invited", address, detail=f"{user.name} as {role}")
            return self._new_link(session, user.id, _LINK_LASTS)

    def link(self, token: str) -> LinkFor | None:
        """What a link is for; None where it is unknown, used, replaced or expired, or its user is inactive."""
        with self._database.read() as session:
            open_links = select(LinkRow).where(*self._is_open(token))
            row = session.scalars(open_links).one_or_none()
            if row is None:
                return None
            if row.user_id is None:
                return None if _has_administrator(session) else LinkFor(None)
            user = session.get_one(UserRow, row.user_id)
            return LinkFor(user.name) if user.active else None

    def redeem(self, token: str, name: str, password: str, *, address: str = "") -> None:
        """The link's user has this password, and is logged in nowhere; the link is used up.

        `name` is that of the first administrator, whom the first link makes; any other link knows its own.

        Raises
        ------
        AccountError
            Where the link is no longer good, or the name or the password cannot be taken.
        """
        found = self.link(token)
        if found is None:
            raise _bad_link()
        name = _checked_name(name, "a name") if found.name is None else found.name
        if (fault := passwords.fault_of(password, name)) is not None:
            raise AccountError(fault)
        kept = passwords.hashed(password)  # outside of the transaction: it takes its time
        now = self._clock()
        with self._database.write(alone=_ALONE) as session:
            user_id = session.scalar(select(LinkRow.user_id).where(*self._is_open(token)))
            used = update(LinkRow).where(*self._is_open(token)).values(used_at=now)
            if session.execute(used).rowcount != 1:  # type: ignore[attr-defined]
                raise _bad_link()
            if user_id is None:
                if _has_administrator(session):
                    raise _bad_link()
                if _find(session, name) is not None:
                    raise AccountError(f"there is a user {name} already: take another name")
                user = UserRow(name=name, role=Role.ADMINISTRATOR.value, active=True, created_at=now, created_by=name)
                session.add(user)
            else:
                user = session.get_one(UserRow, user_id)
                if not user.active:
                    raise _bad_link()
                session.execute(delete(SessionRow).filter_by(user_id=user_id))
            user.password_hash = kept
            passwords.forget_tries(session, _key(name))
            self._note(session, user.name, "link_used", address)

    def sign_in(self, name: str, password: str, address: str) -> tuple[str, Person]:
        """The token of a new session, for a cookie, and who it is.

        Raises
        ------
        TooManyTriesError
            Where the name or the address was refused too often; the password was not looked at.
        AccountError
            Where it is refused, with the same words whatever was wrong.
        """
        address = _clip(address)
        user_id, kept = self._begin_try(name, address)
        right = passwords.is_right(kept, password)
        renewed = passwords.hashed(password) if right and kept and passwords.is_outdated(kept) else kept
        now, token, csrf_token = self._clock(), secrets.token_urlsafe(_TOKEN_BYTES), secrets.token_urlsafe(_TOKEN_BYTES)
        person = None
        with self._database.write(alone=_ALONE) as session:
            user = session.get(UserRow, user_id) if user_id is not None else None
            if right and user is not None and user.active and user.password_hash == kept:  # still as it was
                user.password_hash = renewed
                passwords.forget_tries(session, _key(name))
                session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
                row = SessionRow(token_sha256=_digest(token), user_id=user.id, csrf_token=csrf_token, created_at=now)
                row.expires_at = now + self._session_lasts
                session.add(row)
                person = Person(user.name, Role(user.role), csrf_token)
            action = "log_in_refused" if person is None else "log_in"
            self._note(session, user.name if user is not None else "", action, address)
        if person is None:
            raise AccountError("name or password is wrong, or the user is inactive: try again, or ask an administrator")
        return token, person

    def session(self, token: str) -> Person | None:
        """Who is logged in with this cookie; None where nobody is, or no longer."""
        with self._database.read() as session:
            found = session.execute(
                select(UserRow.name, UserRow.role, SessionRow.csrf_token)
                .join(SessionRow, SessionRow.user_id == UserRow.id)
                .where(SessionRow.token_sha256 == _digest(token), SessionRow.expires_at > self._clock(), UserRow.active)
            ).one_or_none()
        return None if found is None else Person(found.name, Role(found.role), found.csrf_token)

    def sign_out(self, token: str, *, address: str = "") -> None:
        """The session ends; nothing happens where there is none."""
        with self._database.write() as session:
            named = select(UserRow.name).join(SessionRow, SessionRow.user_id == UserRow.id)
            name = session.scalar(named.where(SessionRow.token_sha256 == _digest(token)))
            if name is not None:
                session.execute(delete(SessionRow).filter_by(token_sha256=_digest(token)))
                self._note(session, name, "log_out", address)

    @staticmethod
    def is_csrf(person: Person, given: str | None) -> bool:
        """Whether a form carried the token of the person's session; never for an API token, which has none."""
        if person.csrf_token is None or given is None:
            return False
        return hmac.compare_digest(_digest(person.csrf_token), _digest(given))

    def make_token(self, user_name: str, name: str, *, address: str = "") -> str:
        """A new API token by which a program acts for the user; `name` says which program."""
        name = _checked_name(name, "a token's name")
        token = _API_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
        with self._database.write(alone=_ALONE) as session:
            user = _find_active(session, user_name)
            session.add(ApiTokenRow(user_id=user.id, name=name, token_sha256=_digest(token), created_at=self._clock()))
            self._note(session, user.name, "token_made", address, detail=name)
        return token

    def by_api_token(self, token: str) -> Person | None:
        """For whom the program acts; None where the token is unknown or revoked, or the user inactive."""
        if not token.startswith(_API_PREFIX):
            return None
        now = self._clock()
        with self._database.read() as session:
            found = session.execute(
                select(UserRow.name, UserRow.role, ApiTokenRow.id, ApiTokenRow.last_used_at)
                .join(ApiTokenRow, ApiTokenRow.user_id == UserRow.id)
                .where(ApiTokenRow.token_sha256 == _digest(token), ApiTokenRow.revoked_at.is_(None), UserRow.active)
            ).one_or_none()
        if found is None:
            return None
        if found.last_used_at is None or now - found.last_used_at >= _USE_TOLD_EVERY:
            with self._database.write() as session:
                session.execute(update(ApiTokenRow).filter_by(id=found.id).values(last_used_at=now))
        return Person(found.name, Role(found.role), None)

    def tokens(self, user_name: str) -> list[ApiToken]:
        """The user's API tokens that are not revoked, the oldest first; none where there is no such user."""
        with self._database.read() as session:
            user = _find(session, user_name)
            if user is None:
                return []
            rows = session.scalars(
                select(ApiTokenRow).filter_by(user_id=user.id, revoked_at=None).order_by(ApiTokenRow.id)
            )
            return [ApiToken(row.id, row.name, row.created_at, row.last_used_at) for row in rows]

    def revoke(self, token_id: int, by: str, *, of: str | None = None, address: str = "") -> None:
        """The API token lets in no more; where `of` is given, only one of that user is touched.

        Raises
        ------
        AccountError
            Where there is no such token that lets in.
        """
        with self._database.write(alone=_ALONE) as session:
            row = session.get(ApiTokenRow, token_id)
            user = session.get_one(UserRow, row.user_id) if row is not None else None
            if (
                row is None
                or user is None
                or row.revoked_at is not None
                or (of is not None and _key(of) != _key(user.name))
            ):
                raise AccountError("there is no such token, or it is revoked already: look at the list of tokens again")
            row.revoked_at = self._clock()
            self._note(session, by, "token_revoked", address, detail=f"{row.name} of {user.name}")

    def set_role(self, name: str, role: Role, by: str, *, address: str = "") -> None:
        """The user has this role, at once; the last active administrator keeps that one."""
        with self._database.write(alone=_ALONE) as session:
            user = _found(session, name)
            if user.role == role:
                return
            _check_another(session, user)
            user.role = role.value
            self._note(session, by, "role_set", address, detail=f"{user.name} is {role}")

    def set_active(self, name: str, active: bool, by: str, *, address: str = "") -> None:
        """The user is let in, or not: then sessions and links end, and API tokens rest; not the last administrator."""
        with self._database.write(alone=_ALONE) as session:
            user = _found(session, name)
            if user.active == active:
                return
            if not active:
                _check_another(session, user)
                session.execute(delete(SessionRow).filter_by(user_id=user.id))
                session.execute(delete(LinkRow).filter_by(user_id=user.id, used_at=None))
            user.active = active
            self._note(session, by, "activated" if active else "deactivated", address, detail=user.name)

    def users(self) -> list[Account]:
        """All users in the order of their names."""
        with self._database.read() as session:
            rows = sorted(session.scalars(select(UserRow)), key=lambda row: _key(row.name))
            return [
                Account(r.name, Role(r.role), r.active, r.password_hash is not None, r.created_at, r.created_by)
                for r in rows
            ]

    def audit(
        self, person_name: str, action: str, address: str, *, study: str | None = None, detail: str | None = None
    ) -> None:
        """Who saw or did something is kept; `detail` names no patient."""
        with self._database.write() as session:
            self._note(session, person_name, action, address, study=study, detail=detail)

    def _note(
        self,
        session: Session,
        name: str,
        action: str,
        address: str,
        *,
        study: str | None = None,
        detail: str | None = None,
    ) -> None:
        row = AuditRow(at=self._clock(), user_name=_clip(name), action=_clip(action, _LONGEST_ACTION))
        row.address = _clip(address)
        row.study_instance_uid = None if study is None else _clip(study, _LONGEST_UID)
        row.detail = None if detail is None else _clip(detail, _LONGEST_DETAIL)
        session.add(row)

    def _new_link(self, session: Session, user_id: int | None, lasts: timedelta) -> str:
        """Instead of all that the user had and has not used."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        session.execute(delete(LinkRow).filter_by(user_id=user_id, used_at=None))
        session.add(LinkRow(token_sha256=_digest(token), user_id=user_id, expires_at=self._clock() + lasts))
        return token

    def _is_open(self, token: str) -> tuple[ColumnElement[bool], ...]:
        return LinkRow.token_sha256 == _digest(token), LinkRow.used_at.is_(None), LinkRow.expires_at > self._clock()

    def _begin_try(self, name: str, address: str) -> tuple[int | None, str | None]:
        """The user's id and the hash to check, each None where there is none to let in.

        The try counts as refused until it is not: those that come at the same time cannot all be the last one allowed.
        """
        now = self._clock()
        with self._database.write(alone=_ALONE) as session:
            user = _find(session, name)
            wait = passwords.count_try(session, _key(name), address, now)
            if not wait:
                kept = user.password_hash if user is not None and user.active else None
                return None if user is None else user.id, kept
            # Once in a while only: what is refused without limit must not fill the disk.
            user_name = user.name if user is not None else ""
            told = select(AuditRow.id).filter_by(user_name=user_name, address=address, detail=_THROTTLED)
            if session.scalar(told.where(AuditRow.at > now - passwords.WINDOW).limit(1)) is None:
                self._note(session, user_name, "log_in_refused", address, detail=_THROTTLED)
        raise TooManyTriesError(wait)


def _is_administrator() -> tuple[ColumnElement[bool], ...]:
    return UserRow.role == Role.ADMINISTRATOR.value, UserRow.active.is_(True), UserRow.password_hash.is_not(None)


def _has_administrator(session: Session) -> bool:
    return session.scalar(select(UserRow.id).where(*_is_administrator()).limit(1)) is not None


def _check_another(session: Session, user: UserRow) -> None:
    """An active administrator is left when this user is none."""
    ids = session.scalars(select(UserRow.id).where(*_is_administrator())).all()
    if list(ids) == [user.id]:
        raise AccountError(f"{user.name} is the last active administrator: let another one set a password first")


def _find(session: Session, name: str) -> UserRow | None:
    """The user of this name, in upper or lower case; compared here, for SQLite knows ASCII letters only."""
    key = _key(name)
    ids = [row.id for row in session.execute(select(UserRow.id, UserRow.name)) if _key(row.name) == key]
    return session.get(UserRow, ids[0]) if ids else None


def _found(session: Session, name: str) -> UserRow:
    user = _find(session, name)
    if user is None:
        raise AccountError("there is no such user: look at the list of users again")
    return user


def _find_active(session: Session, name: str) -> UserRow:
    user = _found(session, name)
    if not user.active:
        raise AccountError(f"{user.name} is inactive: activate the user first")
    return user


def _bad_link() -> AccountError:
    return AccountError("the link is used, replaced or expired: ask for another")


def _checked_name(name: str, what: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise AccountError(f"{what} has 1 to {_LONGEST_NAME} printable characters: choose another")
    return name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).lower()


def _clip(told: str, most: int = _LONGEST_NAME) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in told[:most])
