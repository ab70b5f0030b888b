"""The worklist's people: links, passwords, log-ins and their limits, API tokens, roles, and the audit of all that."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, inspect, select, text, update

from dicom_node.worklist import passwords
from dicom_node.worklist.accounts import AccountError, Accounts, Person, Role, TooManyTriesError
from dicom_node.worklist.tables import ApiTokenRow, AuditRow, LinkRow, LoginFailureRow, SessionRow, UserRow

PASSWORD = "correct horse battery"  # noqa: S105
OTHER = "staple battery horse"
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
TABLES = (UserRow, LinkRow, SessionRow, ApiTokenRow, LoginFailureRow, AuditRow)


class Clock:
    def __init__(self):
        self.now = datetime(2026, 3, 1, 8, tzinfo=UTC)

    def __call__(self):
        return self.now

    def passes(self, **parts):
        self.now += timedelta(**parts)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def accounts(database, clock):
    return Accounts(database, clock=clock)


@pytest.fixture
def peopled(accounts):
    """With an administrator, Ada, and a reader, Rae."""
    accounts.redeem(accounts.first_link(), "Ada", PASSWORD)
    accounts.redeem(accounts.invite("Rae", Role.READER, "Ada"), "", OTHER)
    return accounts


def rows(database, table):
    with database.read() as session:
        return session.scalars(select(table)).all()


def actions(database):
    with database.read() as session:
        return [
            tuple(row) for row in session.execute(select(AuditRow.user_name, AuditRow.action).order_by(AuditRow.id))
        ]


def refused(accounts, name="Ada", password="wrong", address=HERE, times=1):  # noqa: S107
    for _ in range(times):
        with pytest.raises(AccountError) as told:
            accounts.sign_in(name, password, address)
    return told.value


# Roles


def test_each_role_allows_what_those_below_it_do():
    order = [Role.READER, Role.OPERATOR, Role.ADMINISTRATOR]
    for place, role in enumerate(order):
        assert [role.allows(other) for other in order] == [index <= place for index in range(3)]
    assert [str(role) for role in order] == ["reader", "operator", "administrator"]


# Links


def test_the_first_link_makes_the_administrator(accounts, database):
    token = accounts.first_link()
    assert accounts.link(token).name is None
    accounts.redeem(token, "  Ada ", PASSWORD, address=HERE)
    (user,) = accounts.users()
    assert (user.name, user.role, user.active, user.has_password) == ("Ada", Role.ADMINISTRATOR, True, True)
    assert accounts.first_link() is None
    assert actions(database) == [("Ada", "link_used")]
    assert rows(database, AuditRow)[0].address == HERE
    _, person = accounts.sign_in("Ada", PASSWORD, HERE)
    assert (person.name, person.role) == ("Ada", Role.ADMINISTRATOR)


def test_a_newer_first_link_ends_the_older(accounts):
    older, newer = accounts.first_link(), accounts.first_link()
    assert accounts.link(older) is None
    assert accounts.link(newer) is not None
    with pytest.raises(AccountError, match="ask for another"):
        accounts.redeem(older, "Ada", PASSWORD)


def test_a_first_link_does_nothing_where_an_administrator_came_otherwise(accounts):
    invited = accounts.invite("Ada", Role.ADMINISTRATOR, "cli")
    first = accounts.first_link()
    accounts.redeem(invited, "", PASSWORD)
    assert accounts.link(first) is None
    with pytest.raises(AccountError, match="ask for another"):
        accounts.redeem(first, "Eve", PASSWORD)
    assert [user.name for user in accounts.users()] == ["Ada"]


def test_the_first_administrator_takes_no_other_users_name(accounts):
    accounts.invite("Ada", Role.READER, "cli")
    first = accounts.first_link()
    with pytest.raises(AccountError, match="take another name"):
        accounts.redeem(first, "ADA", PASSWORD)
    assert accounts.link(first) is not None  # nothing was changed
    accounts.redeem(first, "Bea", PASSWORD)


def test_a_first_link_is_there_while_no_administrator_can_log_in(accounts):
    accounts.redeem(accounts.invite("Rae", Role.READER, "cli"), "", PASSWORD)
    accounts.invite("Ada", Role.ADMINISTRATOR, "cli")
    assert accounts.first_link() is not None


@pytest.mark.parametrize("first", [True, False])
def test_a_link_ends_in_its_time(accounts, clock, first):
    token = accounts.first_link() if first else accounts.invite("Rae", Role.READER, "cli")
    clock.passes(hours=24 if first else 72, seconds=-1)
    assert accounts.link(token) is not None
    clock.passes(seconds=1)
    assert accounts.link(token) is None
    with pytest.raises(AccountError, match="ask for another"):
        accounts.redeem(token, "Ada", PASSWORD)
    assert not any(user.has_password for user in accounts.users())


def test_a_link_works_once(peopled):
    token = peopled.invite("Rae", Role.READER, "Ada")
    peopled.redeem(token, "", PASSWORD)
    assert peopled.link(token) is None
    with pytest.raises(AccountError, match="ask for another"):
        peopled.redeem(token, "", OTHER)
    peopled.sign_in("Rae", PASSWORD, HERE)
    assert peopled.link("unknown") is None
    assert peopled.link("\ud800") is None


@pytest.mark.parametrize("first", [True, False])
def test_of_two_that_use_a_link_at_once_one_does(accounts, database, monkeypatch, first):
    token = accounts.first_link() if first else accounts.invite("Rae", Role.READER, "cli")
    both, done, failed = threading.Barrier(2), [], []
    hashed = passwords.hashed

    def hashed_together(password):
        both.wait(10)  # both found the link open by now
        return hashed(password)

    monkeypatch.setattr(passwords, "hashed", hashed_together)

    def redeem(name, password):
        try:
            accounts.redeem(token, name, password)
            done.append((name, password))
        except AccountError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=redeem, args=who) for who in (("Ada", PASSWORD), ("Eve", OTHER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 1
    assert len(failed) == 1
    assert "ask for another" in failed[0]
    (user,) = accounts.users()
    name, password = done[0]
    assert user.name == (name if first else "Rae")
    accounts.sign_in(user.name, password, HERE)
    assert [action for _, action in actions(database)].count("link_used") == 1


def test_an_invited_user_is_let_in_by_the_link_only(accounts, database):
    token = accounts.invite(" Rae Müller ", Role.READER, "Ada", address=HERE)
    (user,) = accounts.users()
    assert (user.name, user.role, user.has_password, user.created_by) == ("Rae Müller", Role.READER, False, "Ada")
    refused(accounts, "Rae Müller", "")
    assert accounts.link(token).name == "Rae Müller"
    accounts.redeem(token, "Somebody", PASSWORD)  # the link knows its own name
    _, person = accounts.sign_in("rae mÜLLER", PASSWORD, HERE)
    assert person.name == "Rae Müller"
    assert [row.detail for row in rows(database, AuditRow)][:1] == ["Rae Müller as reader"]
    assert actions(database) == [
        ("Ada", "invited"),
        ("Rae Müller", "log_in_refused"),
        ("Rae Müller", "link_used"),
        ("Rae Müller", "log_in"),
    ]


def test_a_reset_leaves_the_password_until_it_is_used_and_ends_sessions(peopled):
    cookie, _ = peopled.sign_in("Rae", OTHER, HERE)
    ada, _ = peopled.sign_in("Ada", PASSWORD, HERE)
    older = peopled.invite("rae", Role.READER, "Ada")
    newer = peopled.invite("RAE", Role.READER, "Ada")
    assert len(peopled.users()) == 2
    assert peopled.link(older) is None
    assert peopled.session(cookie) is not None
    peopled.sign_in("Rae", OTHER, HERE)
    peopled.redeem(newer, "", "something else entirely")
    assert peopled.session(cookie) is None
    assert peopled.session(ada) is not None
    refused(peopled, "Rae", OTHER)
    peopled.sign_in("Rae", "something else entirely", HERE)


def test_a_used_link_ends_the_wait_of_its_user(peopled):
    refused(peopled, "Rae", times=5)
    peopled.redeem(peopled.invite("Rae", Role.READER, "Ada"), "", PASSWORD)
    peopled.sign_in("Rae", PASSWORD, HERE)


def test_an_invitation_neither_changes_a_role_nor_activates(peopled):
    with pytest.raises(AccountError, match="as reader: change the role"):
        peopled.invite("Rae", Role.ADMINISTRATOR, "Ada")
    token = peopled.invite("Rae", Role.READER, "Ada")
    peopled.set_active("Rae", False, "Ada")
    assert peopled.link(token) is None
    with pytest.raises(AccountError, match="inactive"):
        peopled.invite("Rae", Role.READER, "Ada")


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\nb", "a\0b", "a\x1b[1mb", "a\u202eb", "a\ud800"])
def test_a_name_is_of_few_printable_characters(accounts, name):
    with pytest.raises(AccountError, match="1 to 64 printable"):
        accounts.invite(name, Role.READER, "Ada")
    with pytest.raises(AccountError, match="1 to 64 printable"):
        accounts.redeem(accounts.first_link(), name, PASSWORD)
    assert accounts.users() == []


def test_names_of_64_characters_and_of_any_letters_are_taken(accounts):
    for name in ("x" * 64, "Ö. Ærø", "山田 太郎"):
        accounts.invite(name, Role.READER, "Ada")
    accounts.invite("ö. ærø", Role.READER, "Ada")
    accounts.invite("O\u0308. Ærø", Role.READER, "Ada")  # as another keyboard writes it
    assert len(accounts.users()) == 3


# Passwords


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("elevenchars", "12 to 256"),
        ("ab" * 128 + "c", "12 to 256"),
        ("a" * 12, "repeated"),
        ("dr. ADA lovelace", "is the name"),
        (" Dr. Ada Lovelace ", "is the name"),
        ("\ud800" + "abcdefghijkl", "no character"),
    ],
)
def test_a_poor_password_is_refused_and_the_link_stays(accounts, password, told):
    token = accounts.first_link()
    with pytest.raises(AccountError, match=told):
        accounts.redeem(token, "Dr. Ada Lovelace", password)
    assert accounts.link(token) is not None
    assert accounts.users() == []


@pytest.mark.parametrize(
    "password", ["twelve chars", "aaaaaaaaaaab", "ab" * 128, "日本語のパスワードです。。", "Dr. Ada Lovelace1"]
)
def test_any_other_password_is_taken(accounts, password):
    accounts.redeem(accounts.first_link(), "Dr. Ada Lovelace", password)
    accounts.sign_in("Dr. Ada Lovelace", password, HERE)


def test_a_password_is_the_same_from_every_keyboard(accounts):
    accounts.redeem(accounts.first_link(), "Ada", "schönes Wetter")
    accounts.sign_in("Ada", "scho\u0308nes Wetter", HERE)


def test_passwords_are_kept_as_argon2id(peopled, database):
    kept = [user.password_hash for user in rows(database, UserRow)]
    assert all(one.startswith("$argon2id$") for one in kept)
    assert len(set(kept)) == len(kept)


def test_a_log_in_renews_an_outdated_hash(peopled, database, monkeypatch):
    before = {user.name: user.password_hash for user in rows(database, UserRow)}
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    refused(peopled, "Rae")
    peopled.sign_in("Ada", PASSWORD, HERE)
    after = {user.name: user.password_hash for user in rows(database, UserRow)}
    assert after["Rae"] == before["Rae"]
    assert "m=16,t=2" in after["Ada"]
    peopled.sign_in("Ada", PASSWORD, HERE)
    assert {user.name: user.password_hash for user in rows(database, UserRow)} == after


def test_the_parameters_are_those_that_the_library_advises(monkeypatch):
    monkeypatch.undo()
    assert passwords.HASHER.memory_cost >= 65536
    assert passwords.hashed(PASSWORD).startswith("$argon2id$")


# Log-ins


def test_a_log_in_lasts_its_time(database, clock, peopled):
    short = Accounts(database, session_hours=0.5, clock=clock)
    cookie, person = short.sign_in("ada", PASSWORD, HERE)
    assert person.csrf_token
    assert short.session(cookie) == person == Person("Ada", Role.ADMINISTRATOR, person.csrf_token)
    clock.passes(minutes=30, seconds=-1)
    assert short.session(cookie) == person
    clock.passes(seconds=1)
    assert short.session(cookie) is None
    short.sign_in("Ada", PASSWORD, HERE)
    assert len(rows(database, SessionRow)) == 1  # the one that ended is gone


def test_nobody_is_logged_in_by_another_token(peopled):
    cookie, person = peopled.sign_in("Ada", PASSWORD, HERE)
    for token in (
        "",
        cookie[:-1],
        cookie + "a",
        person.csrf_token,
        "\ud800",
        hashlib.sha256(cookie.encode()).hexdigest(),
    ):
        assert peopled.session(token) is None


def test_logging_out_ends_that_session_only(peopled, database):
    one, _ = peopled.sign_in("Ada", PASSWORD, HERE)
    two, _ = peopled.sign_in("Ada", PASSWORD, HERE)
    assert one != two
    peopled.sign_out(one, address=HERE)
    peopled.sign_out(one)
    peopled.sign_out("unknown")
    assert peopled.session(one) is None
    assert peopled.session(two) is not None
    assert actions(database)[-3:] == [("Ada", "log_in"), ("Ada", "log_in"), ("Ada", "log_out")]


def test_a_refusal_says_the_same_whatever_was_wrong(peopled):
    peopled.invite("Una", Role.READER, "Ada")
    peopled.set_active("Rae", False, "Ada")
    tries = [
        ("Ada", "wrong password"),
        ("Ada", ""),
        ("Ada", PASSWORD + "x" * 300),
        ("Ada", "\ud800"),
        ("Rae", OTHER),
        ("Una", PASSWORD),
        ("nobody", PASSWORD),
        ("\ud800\0", PASSWORD),
        ("x" * 5000, PASSWORD),
    ]
    told = {str(refused(peopled, name, password)) for name, password in tries}
    assert len(told) == 1


def test_each_refusal_costs_one_check_of_a_hash(peopled, monkeypatch):
    """So that its time tells nothing of who is there."""
    peopled.invite("Una", Role.READER, "Ada")
    peopled.set_active("Rae", False, "Ada")
    refused(peopled, "nobody")  # the hash that stands in is made once
    checked = []

    class Counting(PasswordHasher):
        def verify(self, kept, password):
            checked.append((kept, password))
            return super().verify(kept, password)

    monkeypatch.setattr(passwords, "HASHER", Counting(time_cost=1, memory_cost=8, parallelism=1))
    for name in ("Ada", "Rae", "Una", "nobody"):
        refused(peopled, name)
    refused(peopled, "Ada", "x" * 100_000)
    assert len(checked) == 5
    assert all("m=8,t=1,p=1" in kept for kept, _ in checked)
    assert max(len(password) for _, password in checked) < 100


def test_the_hash_that_stands_in_lets_nobody_in(peopled):
    peopled.invite("Una", Role.READER, "Ada")
    for name in ("nobody", "Una"):
        refused(peopled, name, "nobody's")


def test_what_changes_while_a_password_is_checked_counts(peopled, monkeypatch):
    check = passwords.is_right

    def deactivated_meanwhile(kept, password):
        peopled.set_active("Rae", False, "Ada")
        return check(kept, password)

    monkeypatch.setattr(passwords, "is_right", deactivated_meanwhile)
    refused(peopled, "Rae", OTHER)


# Limits


def test_five_refusals_of_a_name_are_followed_by_a_wait(peopled, clock):
    refused(peopled, "Ada", times=4)
    clock.passes(minutes=5)
    assert not isinstance(refused(peopled, "ADA", address=ELSEWHERE), TooManyTriesError)
    told = refused(peopled, "ada ", PASSWORD, ELSEWHERE)  # however it is written, from wherever, though right
    assert isinstance(told, TooManyTriesError)
    assert told.retry_after_s == 600
    assert "10 min" in str(told)
    peopled.sign_in("Rae", OTHER, HERE)  # others are let in
    clock.passes(seconds=599.5)
    assert refused(peopled, "Ada", PASSWORD).retry_after_s == 1
    clock.passes(seconds=0.5)
    peopled.sign_in("Ada", PASSWORD, HERE)


def test_tries_while_waiting_do_not_make_it_longer(peopled, clock, database):
    refused(peopled, "Ada", times=50)
    assert len(rows(database, LoginFailureRow)) == 5
    clock.passes(minutes=15)
    peopled.sign_in("Ada", PASSWORD, HERE)


def test_names_that_do_not_exist_wait_as_others_do(peopled):
    assert not isinstance(refused(peopled, "nobody", times=5), TooManyTriesError)
    assert isinstance(refused(peopled, "nobody"), TooManyTriesError)


def test_twenty_refusals_of_an_address_are_followed_by_a_wait(peopled, clock):
    for number in range(20):
        assert not isinstance(refused(peopled, f"name {number}"), TooManyTriesError)
    told = refused(peopled, "Ada", PASSWORD)
    assert isinstance(told, TooManyTriesError)
    assert told.retry_after_s == 900
    peopled.sign_in("Ada", PASSWORD, ELSEWHERE)
    clock.passes(minutes=15)
    peopled.sign_in("Ada", PASSWORD, HERE)


def test_no_hash_is_checked_where_there_is_a_wait(peopled, monkeypatch):
    refused(peopled, times=5)
    monkeypatch.setattr(passwords, "is_right", None)
    assert isinstance(refused(peopled, "Ada", PASSWORD), TooManyTriesError)


def test_a_log_in_clears_the_refusals_of_its_name_only(peopled, database):
    refused(peopled, "Rae", times=3)
    for _ in range(3):
        refused(peopled, "Ada", times=4)
        peopled.sign_in("Ada", PASSWORD, HERE)
    assert {row.name_sha256 for row in rows(database, LoginFailureRow)} == {hashlib.sha256(b"rae").hexdigest()}
    assert len(rows(database, LoginFailureRow)) == 3


def test_old_refusals_are_deleted(peopled, clock, database):
    refused(peopled, "Rae", times=3)
    clock.passes(minutes=15)
    refused(peopled, "Ada")
    assert len(rows(database, LoginFailureRow)) == 1


def test_of_many_tries_at_once_no_more_are_looked_at_than_one_after_another(peopled, monkeypatch):
    looked_at, told = [], []
    check = passwords.is_right

    def counted(kept, password):
        looked_at.append(password)
        return check(kept, password)

    monkeypatch.setattr(passwords, "is_right", counted)
    at_once = threading.Barrier(8)

    def guess(number):
        at_once.wait(10)
        try:
            peopled.sign_in("Ada", f"a wrong guess {number}", HERE)
        except AccountError as error:
            told.append(type(error))

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(looked_at) == 5
    assert told.count(TooManyTriesError) == 3
    assert told.count(AccountError) == 5


def test_a_clock_set_back_makes_nobody_wait_longer(peopled, clock):
    clock.passes(days=1)
    refused(peopled, times=5)
    clock.passes(days=-1)
    assert refused(peopled).retry_after_s == 900


# What is kept


def test_no_token_and_no_password_is_in_any_table(accounts, database):
    first = accounts.first_link()
    accounts.redeem(first, "Ada", PASSWORD, address=HERE)
    link, unused = accounts.invite("Rae", Role.READER, "Ada"), accounts.invite("Una", Role.READER, "Ada")
    accounts.redeem(link, "", OTHER)
    cookie, _ = accounts.sign_in("Ada", PASSWORD, HERE)
    token = accounts.make_token("Ada", "viewer")
    assert accounts.by_api_token(token)
    refused(accounts, "typed a secret here", "and another there")
    refused(accounts, "typed a secret here", times=6)
    secrets = [first, link, unused, cookie, token, token.removeprefix("cxr_"), PASSWORD, OTHER]
    secrets += ["typed a secret here", "and another there"]
    dumped = []
    with database.read() as session:
        for table in inspect(session.connection()).get_table_names():
            found = session.execute(text(f'SELECT * FROM "{table}"')).all()  # noqa: S608 - of our own tables
            dumped += [repr(tuple(row)) for row in found]
    together = "\n".join(dumped).lower()
    assert "viewer" in together
    assert hashlib.sha256(cookie.encode()).hexdigest() in together
    assert [secret for secret in secrets if secret.lower() in together] == []


def test_a_refused_log_in_names_only_who_exists(peopled, database):
    before = len(actions(database))
    refused(peopled, "RAE")
    refused(peopled, "a password in the wrong field")
    assert actions(database)[before:] == [("Rae", "log_in_refused"), ("", "log_in_refused")]


def test_refusals_without_a_look_are_told_once_in_a_while(peopled, database, clock):
    refused(peopled, "Rae", times=5)
    before = len(actions(database))
    refused(peopled, "Rae", times=10)
    assert actions(database)[before:] == [("Rae", "log_in_refused")]
    assert rows(database, AuditRow)[-1].detail == "too many tries"
    refused(peopled, "Rae", address=ELSEWHERE, times=10)
    assert len(actions(database)) == before + 2
    clock.passes(minutes=15)
    refused(peopled, "Rae", times=10)
    assert len(actions(database)) == before + 2 + 5 + 1


def test_an_audit_row_is_clipped_to_its_columns(accounts, database, clock):
    accounts.audit("n" * 99, "a" * 99, "1" * 99, study="1." * 99, detail="line\n" * 99)
    accounts.audit("Ada", "saw", HERE)
    one, two = rows(database, AuditRow)
    assert (len(one.user_name), len(one.action), len(one.address)) == (64, 32, 64)
    assert (len(one.study_instance_uid), len(one.detail)) == (64, 200)
    assert "\n" not in one.detail
    assert (two.user_name, two.action, two.address, two.at) == ("Ada", "saw", HERE, clock.now)
    assert (two.study_instance_uid, two.detail) == (None, None)


def test_nothing_is_told_of_what_was_not_done(peopled, database):
    before = actions(database)
    for wrong in (
        lambda: peopled.invite("", Role.READER, "Ada"),
        lambda: peopled.redeem("unknown", "Eve", PASSWORD),
        lambda: peopled.set_role("Ada", Role.READER, "Rae"),
        lambda: peopled.set_active("Ada", False, "Rae"),
        lambda: peopled.set_role("nobody", Role.READER, "Ada"),
        lambda: peopled.make_token("nobody", "viewer"),
        lambda: peopled.revoke(77, "Ada"),
    ):
        with pytest.raises(AccountError):
            wrong()
    peopled.set_role("Rae", Role.READER, "Ada")  # as they were
    peopled.set_active("Rae", True, "Ada")
    assert actions(database) == before


# Forms


def test_a_form_carries_the_token_of_its_own_session(peopled):
    _, one = peopled.sign_in("Ada", PASSWORD, HERE)
    _, two = peopled.sign_in("Ada", PASSWORD, HERE)
    assert Accounts.is_csrf(one, one.csrf_token)
    for given in (two.csrf_token, "", None, one.csrf_token[:-1], "é", "\ud800"):
        assert not Accounts.is_csrf(one, given)
    for given in ("", None, "None"):
        assert not Accounts.is_csrf(Person("Ada", Role.READER, None), given)


# API tokens


def test_a_program_acts_for_its_user(peopled, database):
    token = peopled.make_token("rae", " viewer ", address=HERE)
    assert token.startswith("cxr_")
    assert peopled.by_api_token(token) == Person("Rae", Role.READER, None)
    assert peopled.session(token) is None
    for other in ("", token.removeprefix("cxr_"), token + "a", "cxr_", "cxr_\ud800"):
        assert peopled.by_api_token(other) is None
    peopled.set_role("Rae", Role.OPERATOR, "Ada")
    assert peopled.by_api_token(token).role is Role.OPERATOR
    assert ("Rae", "token_made") in actions(database)


def test_the_use_of_a_token_is_kept_once_a_minute(peopled, clock):
    token = peopled.make_token("Rae", "viewer")
    (shown,) = peopled.tokens("Rae")
    assert (shown.name, shown.created_at, shown.last_used_at) == ("viewer", clock.now, None)
    began = clock.now
    peopled.by_api_token(token)
    clock.passes(seconds=59)
    peopled.by_api_token(token)
    assert peopled.tokens("RAE")[0].last_used_at == began
    clock.passes(seconds=1)
    peopled.by_api_token(token)
    assert peopled.tokens("Rae")[0].last_used_at == clock.now


def test_a_revoked_token_lets_in_no_more(peopled, database):
    token, other = peopled.make_token("Rae", "viewer"), peopled.make_token("Rae", "other")
    token_id = peopled.tokens("Rae")[0].id
    peopled.revoke(token_id, "Ada", address=HERE)
    assert peopled.by_api_token(token) is None
    assert peopled.by_api_token(other) is not None
    assert [one.name for one in peopled.tokens("Rae")] == ["other"]
    assert actions(database)[-1] == ("Ada", "token_revoked")
    assert rows(database, AuditRow)[-1].detail == "viewer of Rae"
    for unknown in (token_id, token_id + 99):
        with pytest.raises(AccountError, match="no such token"):
            peopled.revoke(unknown, "Ada")


def test_a_token_is_revoked_for_its_own_user_only_where_that_is_asked(peopled):
    token = peopled.make_token("Ada", "viewer")
    token_id = peopled.tokens("Ada")[0].id
    for of in ("Rae", ""):
        with pytest.raises(AccountError, match="no such token"):
            peopled.revoke(token_id, "Rae", of=of)
    assert peopled.by_api_token(token) is not None
    peopled.revoke(token_id, "Ada", of="ada")
    assert peopled.by_api_token(token) is None


def test_a_token_has_a_name_and_an_active_user(peopled):
    assert peopled.tokens("nobody") == []
    with pytest.raises(AccountError, match="1 to 64 printable"):
        peopled.make_token("Rae", "\n")
    with pytest.raises(AccountError, match="no such user"):
        peopled.make_token("nobody", "viewer")
    token = peopled.make_token("Rae", "viewer")
    peopled.set_active("Rae", False, "Ada")
    assert peopled.by_api_token(token) is None
    with pytest.raises(AccountError, match="inactive"):
        peopled.make_token("Rae", "viewer")


# Roles of users, and who is let in


def test_a_role_counts_at_once(peopled, database):
    cookie, _ = peopled.sign_in("Rae", OTHER, HERE)
    peopled.set_role("RAE", Role.OPERATOR, "Ada", address=HERE)
    assert peopled.session(cookie).role is Role.OPERATOR
    assert actions(database)[-1] == ("Ada", "role_set")
    assert rows(database, AuditRow)[-1].detail == "Rae is operator"


def test_who_is_deactivated_is_let_in_no_more(peopled, database):
    cookie, _ = peopled.sign_in("Rae", OTHER, HERE)
    peopled.set_active("rae", False, "Ada")
    assert peopled.session(cookie) is None
    refused(peopled, "Rae", OTHER)
    peopled.set_active("rae", True, "Ada")
    assert peopled.session(cookie) is None  # that session has ended
    peopled.sign_in("Rae", OTHER, HERE)
    assert ("Ada", "deactivated") in actions(database)
    assert ("Ada", "activated") in actions(database)


def test_a_session_of_a_user_who_is_inactive_lets_nobody_in(peopled, database):
    cookie, _ = peopled.sign_in("Rae", OTHER, HERE)
    with database.write() as session:
        session.execute(update(UserRow).filter_by(name="Rae").values(active=False))
    assert peopled.session(cookie) is None


def test_the_last_administrator_stays(peopled):
    peopled.invite("Bea", Role.ADMINISTRATOR, "Ada")  # without a password, nobody could act as she
    peopled.redeem(peopled.invite("Cyd", Role.ADMINISTRATOR, "Ada"), "", PASSWORD)
    peopled.set_active("Cyd", False, "Ada")
    for change in (
        lambda: peopled.set_role("ada", Role.OPERATOR, "Ada"),
        lambda: peopled.set_active("ada", False, "Ada"),
    ):
        with pytest.raises(AccountError, match="last active administrator"):
            change()
    peopled.set_role("Bea", Role.READER, "Ada")  # others may change
    peopled.set_active("Cyd", True, "Ada")
    peopled.set_role("Ada", Role.READER, "Cyd")
    with pytest.raises(AccountError, match="last active administrator"):
        peopled.set_active("Cyd", False, "Cyd")


def test_of_two_administrators_who_demote_each_other_at_once_one_stays(peopled):
    peopled.redeem(peopled.invite("Bea", Role.ADMINISTRATOR, "Ada"), "", PASSWORD)
    at_once, failed = threading.Barrier(2), []

    def demote(name, by):
        at_once.wait(10)
        try:
            peopled.set_role(name, Role.READER, by)
        except AccountError as error:
            failed.append(error)

    threads = [threading.Thread(target=demote, args=pair) for pair in (("Ada", "Bea"), ("Bea", "Ada"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(failed) == 1
    assert [user.role for user in peopled.users()].count(Role.ADMINISTRATOR) == 1


def test_users_stand_in_the_order_of_their_names(peopled):
    peopled.invite("bea", Role.OPERATOR, "Ada")
    assert [(user.name, user.role, user.has_password) for user in peopled.users()] == [
        ("Ada", Role.ADMINISTRATOR, True),
        ("bea", Role.OPERATOR, False),
        ("Rae", Role.READER, True),
    ]


def test_asking_changes_nothing(peopled, database):
    def counts():
        with database.read() as session:
            return [session.scalar(select(func.count()).select_from(table)) for table in TABLES]

    before = counts()
    peopled.users(), peopled.tokens("Ada"), peopled.session("x"), peopled.link("x"), peopled.by_api_token("cxr_x")
    assert counts() == before
