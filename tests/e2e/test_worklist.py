"""The web worklist of a running node, in a real browser, as its readers, operators and administrators meet it."""

import csv
import io
import re

import pytest
from playwright.sync_api import expect, sync_playwright
from pynetdicom import AE, evt
from pynetdicom.sop_class import KeyObjectSelectionDocumentStorage
from sqlalchemy import select

from dicom_node.demo.pacs import free_port
from dicom_node.tables import RetractionRow
from dicom_node.worklist.accounts import Role
from tests.browser import find_program
from tests.conftest import missing
from tests.e2e.conftest import SHORT
from tests.e2e.harness import Node, destination, instances, wait_until
from tests.peers import RESULT_CLASSES, SYNTAXES
from tests.web import DESKTOP, PASSWORD, PHONE, Site, Window

CANNOT_UNDERSTAND = 0xC000  # PS3.4 B.2.3: of that object, for good
SCRIPT = "<script>alert(1)</script>"
IMAGE = '<img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def browser():
    program = find_program()
    if program is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


class Choosy:
    """A destination that stores what it is sent, or refuses it for good."""

    def __init__(self):
        self.refuses = False
        self.stored = []
        self._entity = AE(ae_title="CHOOSY")
        for sop_class in (*RESULT_CLASSES, KeyObjectSelectionDocumentStorage):
            self._entity.add_supported_context(sop_class, SYNTAXES)

    def __enter__(self):
        port = free_port()
        self.peer = {"name": "choosy", "ae_title": "CHOOSY", "host": "127.0.0.1", "port": port, "destination": True}
        self._server = self._entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._entity.shutdown()

    def _store(self, event):
        if self.refuses:
            return CANNOT_UNDERSTAND
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000


@pytest.fixture(scope="module")
def choosy():
    with Choosy() as peer:
        yield peer


@pytest.fixture(scope="module")
def site(orthanc, choosy, browser, tmp_path_factory):
    """A node of its own for these tests: what it logged is looked at in the end."""
    web = {"port": free_port()}
    folder = tmp_path_factory.mktemp("worklist")
    worklist = {"disagreement_retracts": True}
    node = Node(folder / "node", destination(orthanc), choosy.peer, web=web, worklist=worklist, threads=1, **SHORT)
    try:
        node.start()
        yield Site(node, f"http://127.0.0.1:{web['port']}", folder)
        errors = re.findall(r".* ERROR .*", node.log.read_text())
        assert not errors, errors
    finally:
        node.stop()


@pytest.fixture
def window(browser, site):
    """Opens windows of people of a role, or of nobody; none of them may have complained of anything."""
    made = []

    def open_one(role=None, **options):
        session = None if role is None else site.session(role)
        made.append(Window(browser, site.url, session, **options))
        return made[-1]

    yield open_one
    for one in made:
        one.close()
    for one in made:
        one.expect_quiet()


def expect_log_in_form(window):
    page = window.goto("/")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert page.locator("input:visible").count() == 2
    return page


def log_in(window, name, password=PASSWORD, after=""):
    page = window.goto(f"/?after={after}")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    return page


def set_password(window, link, name=None, again=PASSWORD):
    page = window.goto(link)
    if name is None:
        expect(page.get_by_label("Name")).to_have_attribute("readonly", "")
    else:
        page.get_by_label("Name").fill(name)
    page.get_by_label("Password, 12 characters or more").fill(PASSWORD)
    page.get_by_label("The same once more").fill(again)
    page.get_by_role("button", name="Save").click()
    return page


def test_the_first_administrator_comes_by_the_log_s_link_and_others_by_links_of_the_administrator(site, window):
    chief, operator, reader = window(), window(), window()
    expect_log_in_form(chief)
    for name, password in (("admin", "admin"), ("admin", "password"), ("chief", PASSWORD)):
        chief.expect_refusal("/log-in")
        expect(log_in(chief, name, password).get_by_role("alert")).to_contain_text("name or password is wrong")
    (link,) = re.findall(r"http\S+/welcome/\S+", site.node.log.read_text())
    chief.expect_refusal(link.removeprefix(site.url))
    page = set_password(chief, link, "chief", again="another one than that")
    expect(page.get_by_role("alert")).to_contain_text("not the same")
    set_password(chief, link, "chief")
    expect_log_in_form(chief)
    chief.goto(link, 404)  # it was used

    page = log_in(chief, "chief")
    expect(page).to_have_url(f"{site.url}/worklist")
    page.get_by_role("link", name="People").click()
    for person, role in ((operator, "operator"), (reader, "reader")):
        page.get_by_label("Name", exact=True).fill(f"the {role}")
        form = page.locator("form", has=page.get_by_role("button", name="Make a link"))
        form.get_by_role("combobox").select_option(role)
        page.get_by_role("button", name="Make a link").click()
        link = page.locator("code.secret").inner_text()
        set_password(person, link)
        expect(person.page).to_have_url(f"{site.url}/")
        expect(log_in(person, f"the {role}")).to_have_url(f"{site.url}/worklist")
    chief.goto("/people")
    for role in ("operator", "reader"):
        row = page.get_by_role("row", name=f"the {role}").filter(has=page.get_by_label(f"Role of the {role}"))
        expect(row.get_by_text("active", exact=True)).to_be_visible()
        expect(row.get_by_label(f"Role of the {role}")).to_have_value(role)
    page.get_by_role("button", name="Log out").click()
    expect_log_in_form(chief)
    assert chief.page.request.get("/worklist", max_redirects=0).status == 303


def test_a_study_comes_to_an_open_worklist_and_a_flagged_one_that_came_last_stands_first(site, window):
    mine = window("reader")
    mine.goto("/worklist?text=PLAIN")
    expect(mine.find("#rows")).to_contain_text("Nothing waits here")
    mine.mark()
    plain = site.send(PatientName="PLAIN^FIRST")
    expect(mine.row(plain.uid)).to_contain_text("nothing flagged")
    flagged = site.send(PatientName="PLAIN^SECOND", flagged=True)
    expect(mine.row(flagged.uid).locator(".chip.flagged")).to_contain_text("covid19")
    expect(mine.find("#rows tbody tr")).to_have_count(2)
    expect(mine.find("#rows tbody tr").first).to_have_attribute("data-uid", flagged.uid)
    expect(mine.row(flagged.uid).get_by_title("moved up by its result")).to_be_visible()
    expect(mine.row(plain.uid).get_by_title("moved up by its result")).to_have_count(0)
    expect(mine.row(flagged.uid)).to_contain_text("delivered")
    wait_until(
        lambda: mine.row(flagged.uid).locator("img").evaluate("image => image.naturalWidth > 0"), what="its picture"
    )
    assert mine.is_same


def test_a_reader_looks_at_the_heatmap_and_disagrees_and_the_operator_gets_it_as_csv(site, orthanc, window):
    film = site.send(flagged=True)
    mine = window("reader", viewport=DESKTOP)
    page = mine.goto(f"/worklist?text={film.name}")
    mine.row(film.uid).get_by_role("link", name=film.name).click()
    mine.await_viewer()
    assert page.locator(".failure").inner_text() == ""
    expect(page.get_by_role("img", name=re.compile(r"^covid19: \d+ %, threshold 1 %, flagged$"))).to_be_visible()

    overlays = page.locator("img.overlay")
    assert overlays.count() >= 2
    page.locator(".viewer").get_by_role("radio").nth(1).check()
    overlay = overlays.nth(0)
    expect(overlay).to_be_visible()
    wait_until(lambda: overlay.evaluate("image => image.naturalWidth > 0"), what="the heatmap")
    expect(overlay).to_have_css("opacity", "0.6")
    page.get_by_label("Opacity").fill("25")
    expect(overlay).to_have_css("opacity", "0.25")
    page.locator(".viewer").get_by_role("radio").nth(2).check()
    expect(overlays.nth(1)).to_be_visible()
    expect(overlays.nth(1)).to_have_css("opacity", "0.25")
    expect(overlay).to_be_hidden()

    before = mine.grey_values()
    box = page.locator(".viewer .stage").bounding_box()
    page.get_by_role("button", name="Window/level").click()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 90, steps=4)
    page.mouse.up()
    wait_until(lambda: mine.grey_values() != before, what="other grey values")
    expect(page.locator("output.level")).not_to_contain_text("Window 100 % · Level 50 %")
    page.get_by_role("button", name="Reset").click()
    wait_until(lambda: mine.grey_values() == before, what="the grey values of before")

    page.get_by_role("radio", name="disagree").check()
    page.get_by_label("Reason, where you disagree").select_option("false_positive")
    page.get_by_label("Comment").fill("a rib, =no formula")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".said li")).to_have_count(1)
    expect(page.locator(".said li")).to_contain_text("disagree, false positive – a reader")
    expect(page.locator(".said li")).to_contain_text("a rib, =no formula")

    with site.node.database.read() as session:  # as the site has it, that takes the results back
        taken_back = session.scalars(select(RetractionRow).filter_by(study_instance_uid=film.uid)).one()
    assert (taken_back.asked_by, taken_back.reason) == ("a reader", "quality")
    assert taken_back.comment == "a reader disagrees: false positive"
    wait_until(
        lambda: "KO" in {found[1] for found in instances(orthanc, film.uid)}, what="the rejection note in Orthanc"
    )

    theirs = window("operator")
    theirs.goto("/operations")
    with theirs.page.expect_download() as download:
        theirs.page.get_by_role("link", name="Feedback as CSV").click()
    told = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    (mine_of_it,) = (one for one in told if one["study_instance_uid"] == film.uid)
    assert [mine_of_it[key] for key in ("release", "user", "verdict", "reason", "comment")] == [
        "random 0.2",
        "a reader",
        "disagree",
        "false_positive",
        "a rib, =no formula",
    ]


def test_who_disagrees_without_a_reason_is_told_what_to_do(site, window):
    film = site.send()
    mine = window("reader")
    page = mine.goto(f"/studies/{film.uid}")
    mine.expect_refusal(f"/studies/{film.uid}/feedback")
    page.get_by_role("radio", name="disagree").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("choose a reason")
    mine.goto(f"/studies/{film.uid}")
    expect(page.locator(".said")).to_have_count(0)


def test_the_operator_sends_again_what_a_destination_rejected_and_it_is_delivered(site, choosy, orthanc, window):
    choosy.refuses = True
    film = site.send()
    assert site.node.await_ended(film.image).state == "failed"
    mine = window("operator")
    page = mine.goto("/operations")
    failed = (
        page.get_by_role("region", name="Failures")
        .get_by_role("row")
        .filter(has=page.locator(f'a[href="/studies/{film.uid}"]'))
    )
    for what in ("heatmap to choosy", "report to choosy"):
        expect(failed.filter(has_text=what)).to_contain_text("delivery rejected")
        expect(failed.filter(has_text=what)).to_contain_text("C000")
    place = page.get_by_role("region", name="Destinations").get_by_role("row", name="choosy")
    expect(place).to_contain_text("2 rejected")

    choosy.refuses = False
    failed.first.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("objects are sent again")
    summary = site.node.await_ended(film.image)
    assert summary.state == "delivered"
    assert set(summary.sop_instance_uids.values()) <= set(choosy.stored)
    assert {uid for _, _, uid, _ in instances(orthanc, film.uid)} == set(summary.sop_instance_uids.values())
    mine.goto("/operations")
    expect(failed).to_have_count(0)
    expect(place).not_to_contain_text("rejected")
    mine.goto(f"/worklist?text={film.name}")
    expect(mine.row(film.uid)).to_contain_text("delivered")


def test_a_reader_reaches_no_page_of_operators_and_administrators_and_sees_no_way_there(site, window):
    reader, operator, administrator = (window(role) for role in ("reader", "operator", "administrator"))
    for mine, ways in ((reader, 2), (operator, 3), (administrator, 4)):
        page = mine.goto("/worklist")
        expect(page.get_by_role("navigation", name="Pages").get_by_role("link")).to_have_count(ways)
    for mine, path in ((reader, "/operations"), (reader, "/people"), (reader, "/feedback.csv"), (operator, "/people")):
        page = mine.goto(path, 403)
        expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("this needs the role")
        expect(page.get_by_role("main").get_by_role("button")).to_have_count(0)
    token = reader.goto("/account").locator("input[name=csrf_token]").first.get_attribute("value")
    for path, form in (
        ("/operations/retry", {"reason": "delivery_rejected"}),
        ("/people/invite", {"name": "friend", "role": "administrator"}),
        ("/people/role", {"name": "a reader", "role": "administrator"}),
        ("/people/active", {"name": "a operator", "active": "false"}),
    ):
        assert reader.page.request.post(path, form=form | {"csrf_token": token}).status == 403
    administrator.goto("/people")
    expect(administrator.page.get_by_label("Role of a reader")).to_have_value("reader")
    expect(administrator.page.get_by_text("friend")).to_have_count(0)


def test_the_keyboard_alone_is_enough_to_read(site, window):
    films = [site.send(PatientName=f"KEYS^{name}", flagged=name == "THIRD") for name in ("FIRST", "SECOND", "THIRD")]
    third, first, second = films[2], films[0], films[1]  # in the order of the worklist
    site.session("reader")
    mine = window()
    page = mine.goto("/")
    keys = page.keyboard
    expect(page.get_by_label("Name")).to_be_focused()
    keys.type("a reader")
    keys.press("Tab")
    keys.type(PASSWORD)
    keys.press("Tab")
    keys.press("Enter")
    expect(page).to_have_url(f"{site.url}/worklist")
    page.wait_for_load_state()

    keys.press("/")
    keys.type("keys")
    keys.press("Enter")
    expect(page).to_have_url(re.compile(r"[?&]text=keys(&|$)"))
    expect(page.locator("#rows tbody tr")).to_have_count(3)

    def focused(film):
        return expect(mine.row(film.uid).locator("a.open"))

    for key, film in (("j", third), ("j", first), ("j", second), ("j", second), ("k", first), ("k", third)):
        keys.press(key)
        focused(film).to_be_focused()
    keys.press("j")
    focused(first).to_be_focused()
    keys.press("m")  # the line leaves, and the one that took its place has the focus
    expect(page.locator("#rows tbody tr")).to_have_count(2)
    focused(second).to_be_focused()
    keys.press("k")
    focused(third).to_be_focused()
    keys.press("Enter")
    expect(page).to_have_url(f"{site.url}/studies/{third.uid}")

    mine.await_viewer()
    keys.press("2")
    expect(page.locator("img.overlay").nth(1)).to_be_visible()
    keys.press("[")
    expect(page.locator("img.overlay").nth(1)).to_have_css("opacity", "0.5")
    before = mine.grey_values()
    keys.press("i")
    wait_until(lambda: mine.grey_values() != before, what="an inverted picture")
    keys.press("n")
    expect(page.get_by_role("radio", name="disagree")).to_be_focused()
    keys.press("Tab")
    keys.type("wrong")
    keys.press("Tab")
    keys.type("mn")  # letters are letters here
    keys.press("Tab")
    keys.press("Enter")
    expect(page.locator(".said li")).to_contain_text("disagree, wrong place – a reader")
    expect(page.locator(".said li")).to_contain_text("mn")
    keys.press("m")
    expect(page).to_have_url(f"{site.url}/worklist")
    expect(mine.row(second.uid)).to_be_visible()
    expect(mine.row(third.uid)).to_have_count(0)
    expect(mine.row(first.uid)).to_have_count(0)


def test_what_one_marks_read_leaves_the_open_list_of_another(site, window):
    film, other = site.send(PatientName="SHARED^FIRST"), site.send(PatientName="SHARED^SECOND")
    mine, theirs = window("reader"), window("operator")
    for each in (mine, theirs):
        each.goto("/worklist?text=shared")
        expect(each.find("#rows tbody tr")).to_have_count(2)
        each.mark()
    mine.row(film.uid).get_by_role("button", name="Mark read").click()
    for each in (mine, theirs):
        expect(each.row(film.uid)).to_have_count(0)
        expect(each.row(other.uid)).to_be_visible()
        expect(each.find(".count")).to_contain_text("1 study")
        assert each.is_same
    theirs.goto("/worklist?text=shared&read=read")
    expect(theirs.row(film.uid)).to_contain_text("read by a reader")
    theirs.row(film.uid).get_by_role("button", name="Unread").click()
    expect(mine.row(film.uid)).to_be_visible()


HOSTILE = {
    "a script": ({"PatientName": SCRIPT}, SCRIPT),
    "an image": (
        {"PatientName": f"X^{IMAGE}"},
        "X, <img src",
    ),  # = ends what is shown of it
    "quotes": ({"PatientName": "\"'><b>O'BRIEN^&amp;"}, "\"'><b>O'BRIEN, &amp;"),
    "a template": ({"PatientName": "{{ 7 * 7 }}{% raw %}"}, "{{ 7 * 7 }}{% raw %}"),
    "control characters": ({"PatientName": "DOE\x07\x08\x7f^JOHN\r\nSet-Cookie: a"}, "JOHN Set-Cookie: a"),
    "a right-to-left override": ({"PatientName": "DOE\u202egpj.exe\u2066^\u200bANN"}, "DOE gpj.exe"),
    "at length": ({"PatientName": "LONG" + "G" * 10_000}, "LONG" + "G" * 59 + "…"),
    "Japanese": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        "Yamada, Tarou",
    ),
    "other tags": (
        {
            "PatientID": SCRIPT,
            "AccessionNumber": "<i id=evil>",
            "CurrentPatientLocation": IMAGE,
            "StudyID": "<i id=evil>",
            "StudyDescription": SCRIPT,
        },
        IMAGE[:27],
    ),
}


def expect_inert(page):
    content = page.content()
    assert page.locator("#evil, main script, [onerror], main b.evil").count() == 0
    assert page.locator("script:not([src])").count() == 0
    assert not {"\u202e", "\u2066", "\x07"} & set(content)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("changed", "told"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_sender_writes_is_shown_and_does_nothing(site, window, changed, told):
    film = site.send(**changed)
    mine = window("reader")

    page = mine.goto("/worklist")
    expect(mine.row(film.uid)).to_contain_text(told)
    expect_inert(page)
    mine.row(film.uid).locator("a.open").click()
    mine.await_viewer()
    expect(page.locator(".study-head")).to_contain_text(told)
    expect_inert(page)


def test_what_a_reader_writes_is_shown_and_does_nothing(site, window):
    page = window("reader").goto(f"/studies/{site.send().uid}")
    page.get_by_role("radio", name="agree", exact=True).check()
    page.get_by_label("Comment").fill(f"{SCRIPT}{IMAGE}")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".said li")).to_contain_text(f"{SCRIPT}{IMAGE}")
    expect_inert(page)


def test_what_stands_in_an_address_is_shown_and_does_nothing(site, window):
    mine = window("operator")
    for path in (f"/worklist?text=%22%3E{SCRIPT}", f"/worklist?location=%22%3E{IMAGE}", f"/operations?done={SCRIPT}"):
        page = mine.goto(path)
        assert page.locator("main script, [onerror]").count() == 0
    expect(page.get_by_role("status")).to_have_count(0)  # nor is anybody told what a link says was done
    mine.goto(f"/studies/{SCRIPT.replace('/', '')}", 404)
    stranger = window()
    page = log_in(stranger, "a operator", after="//example.org/")
    expect(page).to_have_url(f"{site.url}/worklist")


PAGES = ("log in", "welcome", "worklist", "study", "operations", "people", "account", "error")


@pytest.fixture(scope="module")
def furnished(site, choosy, browser):
    """Where each page is, with something on each that it can show."""
    choosy.refuses = True
    flagged, plain = site.send(PatientID="FURNISHED", flagged=True), site.send(PatientID="FURNISHED")
    site.node.await_ended(flagged.image)
    site.node.await_ended(plain.image)
    choosy.refuses = False
    site.session("administrator")
    accounts = site.accounts
    accounts.make_token("a administrator", "a program")
    token = accounts.invite("somebody new", Role.READER, "a administrator")
    paths = ("/", f"/welcome/{token}", "/worklist", f"/studies/{flagged.uid}", "/operations", "/people", "/account")
    return dict(zip(PAGES, (*paths, "/studies/1.2.3"), strict=True))


@pytest.mark.parametrize("name", PAGES)
def test_no_page_keeps_people_out_in_dark_and_light_on_a_desk_and_on_a_phone(furnished, window, name):
    mine = window(None if name in ("log in", "welcome") else "administrator")
    page = mine.goto(furnished[name], 404 if name == "error" else 200)
    if name == "study":
        mine.await_viewer()
        for summary in page.locator("summary").all():
            summary.click()
    found = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for size in (DESKTOP, PHONE):
            page.set_viewport_size(size)
            found[scheme, size["width"]] = mine.barriers()
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert {key: barriers for key, barriers in found.items() if barriers} == {}


def test_no_page_asks_anybody_but_the_node_or_complains(furnished, window):
    for role in (None, "administrator"):
        mine = window(role)
        for name, path in furnished.items():
            if role or name in ("log in", "welcome"):
                mine.goto(path, 404 if name == "error" else 200)
                if name == "study":
                    mine.await_viewer()
        assert len(mine.requests) >= 4
        mine.expect_quiet()


def test_a_study_without_a_picture_stands_in_the_list_and_nothing_complains(site, window):
    film = site.send(ViewPosition="LL")
    mine = window("reader")
    page = mine.goto(f"/worklist?text={film.name}")
    expect(mine.row(film.uid)).to_contain_text("declined: lateral")
    page.wait_for_load_state("networkidle")
    complaints, mine.complaints = mine.complaints, []
    assert complaints == []


def test_who_is_refused_keeps_the_ways_to_the_other_pages(window):
    page = window("reader").goto("/people", 403)
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link")).to_have_count(2, timeout=1000)


def test_a_name_in_ideographs_alone_is_shown(site, window):
    film = site.send(PatientName="=山田^太郎")
    mine = window("reader")
    mine.goto("/worklist?text=山田")
    expect(mine.row(film.uid)).to_contain_text("山田, 太郎", timeout=2000)
