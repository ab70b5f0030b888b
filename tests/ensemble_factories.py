"""A small bundle of random networks: members that share their blocks, one that does not, a gate and a golden set."""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from training.golden import write_golden
from training.models.gate import KINDS, Gate, pooled_values
from training.models.preprocess import CENTRED, EQUALISED, Preprocess
from training.models.registry import build
from training.shipped import write_shards

LEVELS = (2, 5)
WHOLE = Preprocess(64, 64, CENTRED)
ARCHITECTURES = {
    "minaee": ("Minaee2020", {"backbone": "efficientnet_lite0", "levels": list(LEVELS), "lungs": True}, WHOLE),
    "basu": ("Basu2020", {"backbone": "efficientnet_lite0", "levels": list(LEVELS), "dense": 8, "lungs": True}, WHOLE),
    "zhong": ("Zhong2020", {"dense": [8, 8]}, Preprocess(96, 80, EQUALISED)),
}
POINT = {"threshold": 0.5, "sensitivity": 0.8, "specificity": 0.7}


def networks(seed=3):
    """By name; `minaee` and `basu` have the same convolutions."""
    torch.manual_seed(seed)
    found = {name: build(kind, options) for name, (kind, options, _) in ARCHITECTURES.items()}
    found["basu"].backbone.features.load_state_dict(found["minaee"].backbone.features.state_dict())
    return {name: network.eval() for name, network in found.items()}


def write_ensemble(folder: Path, *, gate=False, golden=False, **changed) -> Path:
    """`changed` replaces top-level entries of the manifest."""
    folder.mkdir(parents=True)
    members = []
    made = networks()
    for name, (kind, options, transform) in ARCHITECTURES.items():
        members.append(
            {
                "name": name,
                "title": name,
                "version": "0.1",
                "architecture": kind,
                "options": options,
                "citation": "none",
                "weights": write_shards(made[name].state_dict(), folder, name),
                "preprocessing": transform.to_manifest(),
                "calibration": {"covid19": {"output": "logit_covid19", "slope": 1.0, "intercept": 0.0}},
                "required": name != "zhong",
            }
        )
    manifest = {
        "name": "random",
        "release": "0.2",
        "title": "Random weights",
        "targets": [
            {
                "name": "covid19",
                "title": "COVID-19 suspected",
                "code": {"value": "840539006", "scheme": "SCT", "meaning": "COVID-19"},
                "weights": {"minaee": 2.0, "basu": 1.0, "zhong": 1.0},
                "operating_point": "balanced",
                "operating_points": {"balanced": POINT},
            }
        ],
        "members": members,
        "training": {},
    }
    if gate:
        manifest["gate"] = write_gate(folder, made["minaee"])
    if golden:
        manifest["golden"] = write_golden(folder, manifest, "golden.json")
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))
    return folder


def write_gate(folder: Path, reader) -> dict:
    """A gate that takes everything for a frontal X-ray; `opinion` changes its mind."""
    with torch.no_grad():
        values = pooled_values(reader.lung_maps(torch.zeros(1, 3, 64, 64))).shape[1]
    gate = Gate(values, 4)
    with torch.no_grad():
        for layer in (gate.kinds, gate.axes):
            layer.weight.zero_()
            layer.bias.zero_()
        gate.kinds.bias[0] = 20
    data = safetensors.torch.save(gate.state_dict())
    (folder / "gate.safetensors").write_bytes(data)
    return {
        "reads": "minaee",
        "weights": {"file": "gate.safetensors", "sha256": hashlib.sha256(data).hexdigest()},
        "kinds": list(KINDS),
        "threshold": 0.5,
        "distance": 10.0,
    }


def images(n=3, seed=14):
    rng = np.random.default_rng(seed)
    return [rng.random((150 + 10 * i, 130), dtype=np.float32) for i in range(n)]
