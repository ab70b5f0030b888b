"""The members that are kept for the ensemble: whole, small enough, and each with its scores out of fold."""

import csv
import json

import pytest
import torch

from dicom_node.bundle import find_bundle
from training.members import MEMBERS, QUESTIONS
from training.shipped import LARGEST_SHARD_BYTES, load_shipped

FOLDER = find_bundle("starter")
KEPT = json.loads((FOLDER / MEMBERS).read_text())["members"]
LARGEST_OF_ALL = 80_000_000


def test_all_five_methods_are_kept_and_small_enough():
    assert {member["training"]["paper"] for member in KEPT} == {"zhang", "basu", "jahan", "zhong", "minaee"}
    assert {member["training"]["profile"] for member in KEPT} == {"robust"}
    files = [FOLDER / part["file"] for member in KEPT for part in member["weights"]]
    assert max(file.stat().st_size for file in files) <= LARGEST_SHARD_BYTES
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= LARGEST_OF_ALL


@pytest.mark.parametrize("member", KEPT, ids=lambda member: member["name"])
def test_a_kept_member_answers_and_is_calibrated(member):
    network, transform = load_shipped(FOLDER, member)
    with torch.inference_mode():
        scores = network.scores(network(transform(torch.rand(300, 260).numpy())[None])[0])
    assert all(scores[name].isfinite().all() for name in network.score_names)
    assert set(member["calibration"]) == set(QUESTIONS)
    with (FOLDER / member["out_of_fold"]).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["image_id"] for row in rows}) > 6000
    assert {row["run"] for row in rows} == {f"fold{index}" for index in range(5)}
    assert set(rows[0]) - {"image_id", "run"} <= set(network.score_names)
