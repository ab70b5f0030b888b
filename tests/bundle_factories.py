"""Bundles in folders: a manifest and tiny weights, which are safetensors all the same."""

import hashlib
import json

from tests.result_factories import manifest, member


def safetensors(tensors=None, data=bytes(8)):
    """The bytes of a file; by default of one tensor of two float32."""
    tensors = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} if tensors is None else tensors
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + data


def write_bundle(folder, content=None, **changed):
    """A whole bundle of one member in `folder`; `changed` goes into its manifest."""
    content = safetensors() if content is None else content
    folder.mkdir(parents=True)
    part = {"file": "zhang.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "zhang.safetensors").write_bytes(content)
    made = manifest(members=(member("zhang", weights=(part,)), member("basu", weights=(part,))), **changed)
    (folder / "manifest.json").write_text(json.dumps(made.model_dump(mode="json")))
    return made
