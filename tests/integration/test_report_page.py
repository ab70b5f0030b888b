"""A run's report in a real browser: it is laid out without a complaint, and asks nobody for anything."""

import numpy as np
import pytest
from PIL import Image

from dicom_node.archive import Archive
from dicom_node.database import Database
from dicom_node.results import encode
from dicom_node.retrospective.report.making import Wanted
from tests.browser import find_browser
from tests.conftest import missing
from tests.factories import chest_dataset
from tests.report_factories import Cohort, filled, told_by, write_labels
from tests.result_factories import results


@pytest.fixture(scope="module")
def browser():
    found = find_browser()
    if found is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def page(sqlite_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    heatmap, _ = results(chest_dataset())
    file = Archive(folder / "archive").store(encode(heatmap))
    (folder / "ledger.sqlite").write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{folder / 'ledger.sqlite'}")
    labels = write_labels(folder / "labels.csv", filled(Cohort(database), 150, heatmaps=(file.path,)))
    made = told_by(database, folder, Wanted("march", labels))
    database.close()
    return made.folder / "report.html"


def test_the_browser_lays_it_out_without_a_complaint_and_without_a_request(browser, page):
    seen = browser.look(page)
    assert seen.complaints == ()
    assert seen.requests == ()
    assert seen.document.count("<svg") >= 7
    assert seen.document.rstrip().endswith("</html>")


def test_what_a_page_complains_of_and_asks_for_is_seen(browser, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text('<img src="http://example.org/a.png"><script>console.error("here")</script>')
    seen = browser.look(broken)
    assert len(seen.complaints) == 1
    assert seen.requests == ("http://example.org/a.png",)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [420, 1100])
def test_it_is_light_or_dark_as_its_reader_is_and_not_cut_off_at_any_width(browser, page, tmp_path, width, dark):
    shot = tmp_path / "shot.png"
    browser.picture(page, shot, width=width, height=4000, dark=dark)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=np.int16)
    corner = pixels[:3, :3]
    assert corner.max() < 60 if dark else corner.min() > 240
    # The page's margin is free of ink all the way down: nothing runs out of it.
    assert np.ptp(pixels[:, -10:]) == 0
    assert np.ptp(pixels) > 180
