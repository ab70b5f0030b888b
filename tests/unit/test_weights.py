import json

import pytest

from dicom_node.bundle import find_bundle
from dicom_node.weights import faults
from tests.bundle_factories import safetensors, write_bundle


def told(folder):
    return [str(fault) for fault in faults(folder)]


def f32(begin, end, shape=None):
    return {"dtype": "F32", "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_the_shipped_bundle_is_whole():
    assert told(find_bundle("starter")) == []


def test_a_bundle_with_everything_in_its_place_is_whole(tmp_path):
    write_bundle(tmp_path / "b")
    assert told(tmp_path / "b") == []


def test_a_file_with_another_hash_and_one_that_is_not_there_are_each_named(tmp_path):
    folder = tmp_path / "b"
    write_bundle(folder)
    (folder / "zhang.safetensors").write_bytes(safetensors(data=bytes(7) + b"x"))
    (line,) = told(folder)
    assert line.startswith(f"{folder / 'zhang.safetensors'} is not the file that manifest.json names: SHA-256 ")
    (folder / "zhang.safetensors").unlink()
    assert told(folder) == [f"{folder / 'zhang.safetensors'} is not there; install the bundle again"]


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path):
    import os

    folder = tmp_path / "b"
    write_bundle(folder)
    (folder / "zhang.safetensors").unlink()
    os.mkfifo(folder / "zhang.safetensors")
    assert "is not there" in told(folder)[0]


@pytest.mark.parametrize("name", ["old.pt", "OLD.PTH", "model.bin", "x.pkl", "deep/er/last.ckpt"])
def test_a_pickle_that_lies_beside_is_a_fault_whatever_its_case_and_depth(tmp_path, name):
    folder = tmp_path / "b"
    write_bundle(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    (line,) = told(folder)
    assert line.startswith(f"{folder / name} may be a pickle")


def test_a_damaged_manifest_is_one_line_and_a_pickle_is_found_all_the_same(tmp_path):
    folder = tmp_path / "b"
    write_bundle(folder)
    (folder / "manifest.json").write_text("{")
    (folder / "old.pt").touch()
    first, second = told(folder)
    assert first.startswith(f"{folder / 'manifest.json'}: manifest: Invalid JSON")
    assert "old.pt" in second
    assert "\n" not in first


def test_every_file_that_the_manifest_names_is_checked_and_the_record_of_training_is_not(tmp_path):
    folder = tmp_path / "b"
    write_bundle(folder, training={"data": {"file": "gone.csv", "sha256": "0" * 64}})
    assert told(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["members"][0]["preprocessing"] = {"file": "../outside", "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (line,) = told(folder)
    assert "names ../outside, which is outside the bundle" in line


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "a header of 0 bytes"),
        (b"\x00" * 8, "not JSON"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "a header of"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((3).to_bytes(8, "little") + b" {}", "no JSON object"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "not JSON"),
        ((14).to_bytes(8, "little") + b'{"a":1,"a":2  ', "not JSON"),
        (safetensors({"__metadata__": {"a": 1}}, b""), "__metadata__"),
        (safetensors({"w": 1}), "is not dtype, shape and data_offsets"),
        (safetensors({"w": f32(0, 8) | {"dtype": "PICKLE"}}), "unknown dtype"),
        (safetensors({"w": f32(0, 8) | {"dtype": ["F32"]}}), "unknown dtype"),
        (safetensors({"w": f32(0, 8, [3])}), "not as long as"),
        (safetensors({"w": f32(0, 8, [-2])}), "whole numbers"),
        (safetensors({"w": f32(0, 8, [True, 2])}), "whole numbers"),
        (safetensors({"w": f32(8, 0, [])}), "not as long as"),
        (safetensors({"w": f32(4, 8)}), "gap or overlap at byte 0"),
        (safetensors({"a": f32(0, 8), "b": f32(4, 8)}), "gap or overlap at byte 4"),
        (safetensors({"w": f32(0, 4)}), "fill 4 bytes, and 8 are there"),
        (safetensors({"w": f32(0, 16)}), "fill 16 bytes, and 8 are there"),
    ],
)
def test_what_has_the_right_hash_and_is_no_safetensors_is_named(tmp_path, content, what):
    write_bundle(tmp_path / "b", content)
    (line,) = told(tmp_path / "b")
    assert line.startswith(f"{tmp_path / 'b' / 'zhang.safetensors'} is not safetensors: ")
    assert what in line


def test_files_that_safetensors_itself_wrote_pass(tmp_path):
    import torch
    from safetensors.torch import save

    tensors = {"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(0), "c": torch.zeros((), dtype=torch.long)}
    write_bundle(tmp_path / "b", save(tensors, {"made": "here"}))
    assert told(tmp_path / "b") == []
