"""Nights of the site, with the time given as a value: both changes of the clock, missed nights, and what else rests."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest

from dicom_node.config import Retrospective
from dicom_node.retrospective.window import Standing, days_due, night, opens_next, why_it_rests

NIGHTS = Retrospective(window="22:00-06:00", time_zone="Europe/Vienna")
IDLE = Standing(rests_until=None, fault=None, held_bytes=0, waiting_images=0)


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-01-10 20:59:59", None),
        ("2026-01-10 21:00:00", date(2026, 1, 10)),  # 22:00 in Vienna
        ("2026-01-11 04:59:59", date(2026, 1, 10)),
        ("2026-01-11 05:00:00", None),
        ("2026-07-10 20:00:00", date(2026, 7, 10)),  # 22:00 in summer
        ("2026-07-11 04:00:00", None),
    ],
)
def test_a_night_is_known_by_the_day_on_which_it_opens(now, day):
    found = night(utc(now), NIGHTS)
    assert (found and found.day) == day


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        (date(2026, 3, 28), 7),  # to summer time
        (date(2026, 10, 24), 9),  # back
        (date(2026, 6, 1), 8),
    ],
)
def test_a_night_in_which_the_clock_is_changed_is_an_hour_shorter_or_longer(day, hours):
    found = night(datetime(day.year, day.month, day.day, 23, 30, tzinfo=UTC), NIGHTS)
    assert found.day == day
    assert found.closes_at - found.opens_at == timedelta(hours=hours)


@pytest.mark.parametrize("window", ["22:00-06:00", "02:30-03:30", "01:15-02:45", "", "00:00-12:00", "13:00-00:00"])
@pytest.mark.parametrize("change", ["2026-03-28 00:00", "2026-10-24 00:00"])
def test_over_both_changes_of_the_clock_the_window_opens_once_a_day(window, change):
    """Minute by minute over three days: every opening is one unbroken stretch, and each day has its own."""
    settings = Retrospective(window=window, time_zone="Europe/Vienna")
    begin = utc(change)
    stretches = []
    for minute in range(3 * 24 * 60):
        found = night(begin + timedelta(minutes=minute), settings)
        if not stretches or stretches[-1] != found:
            stretches.append(found)
    opened = [one for one in stretches if one is not None]
    days = [one.day for one in opened]
    assert len(days) == len(set(days))
    assert days == sorted(days)
    assert len(days) in (3, 4)
    for earlier, later in pairwise(opened):
        assert earlier.closes_at <= later.opens_at
    if not window:
        assert None not in stretches


def test_when_it_opens_next_is_the_site_s_time():
    assert opens_next(utc("2026-03-29 12:00"), NIGHTS) == utc("2026-03-29 20:00")
    assert opens_next(utc("2026-10-25 12:00"), NIGHTS) == utc("2026-10-25 21:00")


def test_a_night_takes_the_day_before_it_opens():
    opened = night(utc("2026-01-11 02:00"), NIGHTS)
    assert days_due(opened, None, NIGHTS) == [date(2026, 1, 9)]


def test_a_day_is_taken_once():
    opened = night(utc("2026-01-11 02:00"), NIGHTS)
    assert days_due(opened, date(2026, 1, 9), NIGHTS) == []


def test_two_missed_nights_are_caught_up():
    opened = night(utc("2026-01-13 22:00"), NIGHTS)
    assert days_due(opened, date(2026, 1, 9), NIGHTS) == [date(2026, 1, 10), date(2026, 1, 11), date(2026, 1, 12)]


def test_after_a_long_rest_no_more_days_are_caught_up_than_is_set():
    opened = night(utc("2026-01-13 22:00"), NIGHTS)
    found = days_due(opened, date(2025, 1, 1), Retrospective(catch_up_days=3))
    assert found == [date(2026, 1, 10), date(2026, 1, 11), date(2026, 1, 12)]


def test_outside_the_window_it_is_told_when_it_opens():
    assert why_it_rests(utc("2026-01-10 12:00"), NIGHTS, IDLE) == (
        "outside the window 22:00-06:00 Europe/Vienna; it opens at 2026-01-10 22:00"
    )


@pytest.mark.parametrize(
    ("standing", "told"),
    [
        (IDLE, None),
        (Standing(utc("2026-01-10 23:10"), "pacs does not answer", 0, 0), "until 00:10:00: pacs does not answer"),
        (Standing(utc("2026-01-10 22:59"), "pacs does not answer", 0, 0), None),
        (Standing(None, None, 20_000_000_000, 0), "20.00 GB of fetched images"),
        (Standing(None, None, 19_999_999_999, 0), None),
        (Standing(None, None, 0, 256), "256 fetched images wait"),
        (Standing(None, None, 0, 255), None),
    ],
)
def test_inside_the_window_what_speaks_against_it_is_told(standing, told):
    found = why_it_rests(utc("2026-01-10 23:00"), NIGHTS, standing)
    assert found is None if told is None else told in found
