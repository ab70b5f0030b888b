"""The whole worker against a bare loop of its networks: images per second, CPU time, memory, and what heatmaps cost.

    python -m benchmarks.worker [--device cuda] [--images 64] [--rounds 3] [--bundle starter] [--json FILE]

Each round runs, in processes of their own and one after the other: `bare` (the members as training has them, eager,
their inputs ready on the device, in batches of the worker's size and in its precision), `predict` (files decoded by
children, then everything that the worker does with networks, heatmaps among it) and `worker` (the real thing: claims,
decoding, networks, heatmaps, reports, archive, ledger). Films are drawn phantoms of 2500 x 2048 pixels, 16 bits
allocated, 12 stored, uncompressed. All processes of a round share the machine's cores as they would in service.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydicom.uid import UID

from dicom_node.archive import Archive
from dicom_node.bundle import find_bundle, read_manifest
from dicom_node.claims import Claims
from dicom_node.config import Settings
from dicom_node.database import Database
from dicom_node.decoding import Wanted, decode, decoders
from dicom_node.demo.instances import phantom_dataset
from dicom_node.demo.phantom import draw_phantom
from dicom_node.domain import Admission, NodeError, Prediction
from dicom_node.ledger import Ledger, Received
from dicom_node.reporting import Reporter
from dicom_node.reports import Reports
from dicom_node.results import encode
from training.shipped import load_shipped
from workers.ensemble import Ensemble
from workers.screening import Screener

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROWS, COLUMNS = 2500, 2048
DRAWN = 4
MODES = ("bare", "predict", "worker")
_WARM = 2  # images, or batches, before the clock starts


def main() -> None:
    """Run all modes in turn, or the one that a child was started for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=0, help="default: 24 on a CPU, 768 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--threads", type=int, default=1, help="of the networks, on a CPU")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--mode", choices=(*MODES, "maps"), help="of a child")
    parser.add_argument("--films", type=Path, help="of a child")
    asked = parser.parse_args()
    asked.images = asked.images or (24 if asked.device == "cpu" else 768)
    if asked.mode:
        torch.set_num_threads(asked.threads)
        sys.stdout.write(json.dumps(globals()[f"_{asked.mode}"](asked)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        asked.films = Path(folder)
        draw_films(asked.films)
        rounds = [{mode: _child(asked, mode) for mode in MODES} for _ in range(asked.rounds)]
        found = {"machine": machine(asked), "rounds": rounds, "ratios": ratios(rounds), "maps": _child(asked, "maps")}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(found))


def draw_films(folder: Path) -> None:
    """A few phantoms as Part 10 files."""
    for number in range(DRAWN):
        ds = phantom_dataset(number)
        pixels = draw_phantom(number, rows=ROWS, columns=COLUMNS, opacities=number)
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.pop("PresentationLUTShape", None)
        ds.Rows, ds.Columns, ds.PixelData = ROWS, COLUMNS, pixels.tobytes()
        (folder / f"{number}.dcm").write_bytes(encode(ds))


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of."""
    gpu = torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else None
    manifest = read_manifest(find_bundle(asked.bundle))
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bundle": f"{manifest.name} {manifest.release}",
        "members": [member.name for member in manifest.members],
        "images": asked.images,
        "threads": asked.threads,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _child(asked: argparse.Namespace, mode: str) -> dict[str, Any]:
    options = ("device", "images", "bundle", "threads", "films")
    command = [sys.executable, "-m", "benchmarks.worker", "--mode", mode]
    command += [part for name in options for part in (f"--{name}", str(getattr(asked, name)))]
    environment = os.environ | {"OMP_NUM_THREADS": str(asked.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{mode}: {found}\n")
    return found


def _bare(asked: argparse.Namespace) -> dict[str, float]:
    folder = find_bundle(asked.bundle)
    device = torch.device(asked.device)
    ensemble = Ensemble.load(folder, asked.device)
    half = {member.name: member.half for member in ensemble._members}
    size = ensemble.batch_size
    del ensemble
    manifest = json.loads((folder / "manifest.json").read_text())
    image = draw_phantom(0, rows=ROWS // 4, columns=COLUMNS // 4, opacities=2).astype(np.float32) / 4095
    networks = []
    for member in manifest["members"]:
        network, transform = load_shipped(folder, member)
        inputs = transform(image)[None].expand(size, -1, -1, -1).contiguous().to(device)
        networks.append((network.requires_grad_(False).to(device), inputs, half[member["name"]]))

    @torch.no_grad()
    def once() -> None:
        for network, inputs, halved in networks:
            with torch.autocast(device.type, torch.bfloat16, enabled=halved):
                outputs, _ = network(inputs)
            torch.stack(list(network.scores(outputs).values())).cpu()

    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for _ in range(_WARM):
            once()
        batches = -(-asked.images // size)
        with _measured(batches * size) as found:
            for _ in range(batches):
                once()
    return found


def _predict(asked: argparse.Namespace) -> dict[str, float]:
    settings = Settings(device=asked.device)
    ensemble = Ensemble.load(find_bundle(asked.bundle), asked.device)
    wanted = Wanted(ensemble.squares, settings.heatmap_size, settings.max_pixels)
    films = _films(asked, asked.images)
    with decoders(settings) as children:
        ensemble.predict([children.submit(decode, film, wanted).result().squares for film in films[:_WARM]])
        with _measured(len(films)) as found:
            futures = [children.submit(decode, film, wanted) for film in films]
            start = 0
            while start < len(films):
                end = start + 1
                futures[start].result()
                while end < len(films) and end - start < ensemble.batch_size and futures[end].done():
                    end += 1
                _expect(ensemble.predict([future.result().squares for future in futures[start:end]]))
                futures[start:end] = [None] * (end - start)  # type: ignore[list-item]
                start = end
    return found


def _worker(asked: argparse.Namespace) -> dict[str, float]:
    folder = find_bundle(asked.bundle)
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(device=asked.device, lease_s=600.0, study_quiet_s=0)
        database = Database(f"sqlite:///{place}/ledger.sqlite")
        database.upgrade()
        ledger, archive = Ledger(database), Archive(Path(place) / "archive")
        ensemble = Ensemble.load(folder, asked.device)
        ledger.activate_release(ensemble.manifest)
        files = [archive.store(path.read_bytes()) for path in sorted(asked.films.glob("*.dcm"))]
        with decoders(settings) as children:
            screener = Screener(Claims(database), archive, ensemble, children, settings)
            reporter = Reporter(Reports(database), archive, children, settings)

            def screen(first: int, count: int) -> None:
                for number in range(first, first + count):
                    ledger.record(_received(number, files[number % len(files)]))
                screened = threading.Event()
                reporting = threading.Thread(target=_report, args=(reporter, screened))
                reporting.start()
                while screener.screen_next():
                    pass
                screened.set()
                reporting.join()

            screen(0, _WARM * (1 if asked.device == "cpu" else children.processes))
            with _measured(asked.images) as found:
                screen(10_000, asked.images)
            counts = ledger.counts()
            if counts["withheld"] != counts["received"]:
                raise SystemExit(f"not all were reported: {counts}")
    return found


def _report(reporter: Reporter, screened: threading.Event) -> None:
    """Each image is a study of its own; what is due is reported beside the networks, as another process does it."""
    while True:
        last = screened.is_set()
        if not reporter.issue_due():
            if last:
                return
            time.sleep(0.05)


def _maps(asked: argparse.Namespace) -> dict[str, float]:
    """By member, the time of scores and heatmaps together over that of the scores."""
    ensemble = Ensemble.load(find_bundle(asked.bundle), asked.device)
    image = draw_phantom(0, rows=ROWS // 4, columns=COLUMNS // 4, opacities=2).astype(np.float32) / 4095
    synchronise = torch.cuda.synchronize if asked.device.startswith("cuda") else lambda: None
    found = {}
    for member in ensemble._members:
        inputs = member.transform(image)[None].to(ensemble.device)
        inputs = inputs.expand(ensemble.batch_size, -1, -1, -1).contiguous(memory_format=torch.channels_last)

        def timed(
            *,
            maps: bool,
            network: Any = member.network,
            inputs: torch.Tensor = inputs,
            wanted: Any = member.described.maps,
        ) -> float:
            start = time.perf_counter()
            with torch.no_grad():
                intermediates = network.embed(inputs)
                network.judge(intermediates)
                if maps:
                    network.heatmaps(intermediates, wanted)
            synchronise()
            return time.perf_counter() - start

        pairs = [(timed(maps=False), timed(maps=True)) for _ in range(13)][3:]
        found[member.name] = round(statistics.median(both / plain for plain, both in pairs), 3)
    return found


def _films(asked: argparse.Namespace, count: int) -> list[Path]:
    drawn = sorted(asked.films.glob("*.dcm"))
    return [drawn[index % len(drawn)] for index in range(count)]


def _received(number: int, file: Any) -> Received:
    return Received(
        sop_instance_uid=UID(f"1.2.826.0.1.3680043.10.543.9.{number + 1}"),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
        study_instance_uid=f"1.2.826.0.1.3680043.10.543.8.{number + 1}",
        series_instance_uid=f"1.2.826.0.1.3680043.10.543.7.{number + 1}",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        file=file,
        calling_ae_title="BENCH",
        modality="CR",
        admission=Admission(None, "PA", "chest", ()),
    )


def _expect(found: Sequence[Prediction | NodeError]) -> None:
    if wrong := [one for one in found if isinstance(one, NodeError)]:
        raise SystemExit(f"an image was not answered: {wrong[0]}")


@contextmanager
def _measured(images: int) -> Iterator[dict[str, float]]:
    """Seconds and CPU milliseconds an image, of this process and its children, and their memory."""
    found: dict[str, float] = {}
    start, used = time.perf_counter(), _cpu_s()
    yield found
    elapsed, used = time.perf_counter() - start, _cpu_s() - used
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found |= {
        "images_per_s": round(images / elapsed, 3),
        "cpu_ms_per_image": round(1000 * used / images, 1),
        "peak_mb": round(own),
        "pss_mb": round(sum(map(_pss_mb, _tree()))),
    }


def _tree() -> list[int]:
    found = [os.getpid()]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def _cpu_s() -> float:
    total = 0
    for pid in _tree():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(fields[index]) for index in (11, 12, 13, 14))  # proc(5): utime, stime, cutime, cstime
    return total / os.sysconf("SC_CLK_TCK")


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def ratios(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, list[float]]:
    """Smallest, median and largest over the rounds, each against the bare loop of its own round."""
    found = {}
    for mode in MODES[1:]:
        for name in ("images_per_s", "cpu_ms_per_image", "pss_mb"):
            values = sorted(each[mode][name] / each["bare"][name] for each in rounds)
            label = {"images_per_s": "images/s", "cpu_ms_per_image": "CPU time", "pss_mb": "memory"}[name]
            found[f"{mode}: {label} of bare"] = [
                round(v, 3) for v in (values[0], statistics.median(values), values[-1])
            ]
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [json.dumps(found["machine"])]
    for mode in MODES:
        rates = [each[mode]["images_per_s"] for each in found["rounds"]]
        cpu = [each[mode]["cpu_ms_per_image"] for each in found["rounds"]]
        memory = [each[mode]["pss_mb"] for each in found["rounds"]]
        lines.append(
            f"{mode:8} {statistics.median(rates):8.2f} images/s, {statistics.median(cpu):7.1f} CPU ms an image, "
            f"{statistics.median(memory):.0f} MB"
        )
    lines += [f"{name}: {low} to {high}, median {middle}" for name, (low, middle, high) in found["ratios"].items()]
    lines += [f"{name}: scores and heatmaps take {times} times the scores" for name, times in found["maps"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
