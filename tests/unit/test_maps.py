import zipfile

import cv2
import numpy as np
import pytest

from dicom_node.archive import Archive
from dicom_node.domain import MemberMap
from dicom_node.maps import SUFFIX, MissingFileError, encode_maps, read_maps
from dicom_node.predictions import MapPlace

BOX = (0.1, 0.2, 0.3, 0.4)


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


def one(member, name, seed, shape=(6, 9)):
    return MemberMap(member, name, np.random.default_rng(seed).integers(0, 256, shape, np.uint8), BOX)


MAPS = (one("zhang", "anomaly", 1), one("zhang", "classification", 2), one("zhong", "covid19", 3, (80, 80)))


def places(path, maps=MAPS):
    return [MapPlace(path, each.member, each.name, each.box) for each in maps]


def test_maps_come_back_from_one_file_to_the_last_bit(archive):
    path = archive.store(encode_maps(MAPS, 1), SUFFIX).path
    for given, read in zip(MAPS, read_maps(archive, places(path)), strict=True):
        assert (read.member, read.name, read.box) == (given.member, given.name, given.box)
        np.testing.assert_array_equal(read.pixels, given.pixels)


def test_the_same_maps_are_the_same_bytes_and_anybody_can_open_them(tmp_path):
    content = encode_maps(MAPS, 1)
    assert content == encode_maps(MAPS, 1)
    (tmp_path / "maps.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "maps.zip") as file:
        assert file.testzip() is None
        assert file.namelist() == ["zhang/anomaly.png", "zhang/classification.png", "zhong/covid19.png"]


def test_a_map_of_an_older_ledger_is_a_file_of_its_own(archive):
    path = archive.store(cv2.imencode(".png", MAPS[0].pixels)[1].tobytes(), ".png").path
    (read,) = read_maps(archive, places(path, MAPS[:1]))
    np.testing.assert_array_equal(read.pixels, MAPS[0].pixels)


def test_no_maps_need_no_file(archive):
    assert read_maps(archive, ()) == ()


@pytest.mark.parametrize("content", [None, b"garbage", encode_maps(MAPS[:1], 1), encode_maps(MAPS, 1)[:-30]])
def test_what_is_not_in_the_archive_as_it_was_stored_is_named(archive, content):
    path = "ab/nothing.zip" if content is None else archive.store(content, SUFFIX).path
    with pytest.raises(MissingFileError, match=path):
        read_maps(archive, places(path))
