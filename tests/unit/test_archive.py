import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node.archive import OWNER, Archive, ForeignArchiveError, owner_of


def files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_file_is_named_by_its_content(tmp_path):
    archive = Archive(tmp_path)
    stored = archive.store(b"bytes")
    assert stored.sha256 == hashlib.sha256(b"bytes").hexdigest()
    assert stored.sha256 in stored.path
    assert archive.locate(stored.path).read_bytes() == b"bytes"
    assert stored.size_bytes == 5


def test_the_same_bytes_twice_are_one_file(tmp_path):
    archive = Archive(tmp_path)
    assert archive.store(b"bytes") == archive.store(b"bytes")
    assert len(files(tmp_path)) == 1


def test_the_file_is_synchronised_before_it_is_named_and_its_folder_after(tmp_path, monkeypatch):
    happened = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor):
        happened.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        sync(descriptor)

    def renamed(self, target):
        happened.append("rename")
        return replace(self, target)

    archive = Archive(tmp_path)
    archive.store(b"first")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    archive.store(b"first")
    assert happened == ["file", "rename", "folder"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    archive = Archive(tmp_path)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        archive.store(b"bytes")
    assert files(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    archive = Archive(tmp_path)
    (tmp_path / "incoming" / "tmpabc").write_bytes(b"half")
    kept = archive.store(b"whole")
    assert archive.clear_incoming() == 1
    assert files(tmp_path) == [archive.locate(kept.path)]


def test_of_several_that_take_an_archive_at_the_same_time_all_agree(tmp_path):
    archive = Archive(tmp_path / "archive")
    for _ in range(30):
        (tmp_path / "archive" / OWNER).unlink(missing_ok=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: archive.belongs_to("mine", has_files=False), range(8)))
    with pytest.raises(ForeignArchiveError, match="belongs to ledger mine, the database is ledger yours"):
        archive.belongs_to("yours", has_files=False)


def test_an_empty_archive_is_not_taken_for_a_ledger_that_has_files(tmp_path):
    archive = Archive(tmp_path / "archive")
    with pytest.raises(ForeignArchiveError, match="is it mounted"):
        archive.belongs_to("mine", has_files=True)
    archive.store(b"one")
    archive.belongs_to("mine", has_files=True)
    assert owner_of(tmp_path / "archive") == "mine"
