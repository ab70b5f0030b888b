"""Generated results of evaluations, in the form of `dicom_node.evaluation.shape`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from training.evaluation.wording import HONEST, POOLED
from training.recipe import Recipe
from training.records import plain


def figure(value: float, half: float = 0.05, n: int = 200, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, "interval": "made up", **more}


def proportion(hits: int, n: int) -> dict[str, Any]:
    return figure(hits / n, 0.02, n, hits=hits, wilson=[0.0, 1.0], normal=0.02)


def roc(auc: float) -> dict[str, Any]:
    x = np.linspace(0, 1, 60)
    return {"x": x.tolist(), "y": (x ** ((1 - auc) / auc)).tolist()}


def line(first: float, last: float) -> dict[str, Any]:
    return {"x": np.linspace(0, 1, 30).tolist(), "y": np.linspace(first, last, 30).tolist()}


def histogram(*names: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    edges = np.linspace(0, 1, 41)
    counts = {
        name: np.histogram(rng.beta(2 + 2 * i, 5 - i, 300 // (i + 1)), edges)[0].tolist()
        for i, name in enumerate(names)
    }
    return {"edges": edges.tolist(), "counts": counts}


def threshold(sensitivity: float = 0.95, specificity: float = 0.3) -> dict[str, Any]:
    worth = [{"prevalence": p, "ppv": 0.5 * p, "npv": 1 - 0.2 * p} for p in (0.01, 0.05, 0.1, 0.3)]
    return {
        "thresholds": [0.31, 0.33, 0.28, 0.35, 0.3],
        "chosen": "highest threshold with a sensitivity of 0.95 or more on the other folds' images of this question",
        "sensitivity": proportion(round(100 * sensitivity), 100),
        "specificity": proportion(round(150 * specificity), 150),
        "predictive_values": worth,
    }


def brief(auc: float | None, images: int = 240, positives: int = 100) -> dict[str, Any]:
    at = {"youden": threshold(0.6, 0.6), "sensitivity 0.95": threshold()}
    area = None if auc is None else figure(auc)
    return {"images": images, "patients": images - 40, "positives": positives, "auc": area, "at": at}


def group(auc: float | None, *names: str) -> dict[str, Any]:
    return {
        **brief(auc),
        "average_precision": None if auc is None else figure(auc - 0.1),
        "roc": None if auc is None else roc(auc),
        "precision_recall": None if auc is None else line(1.0, 0.4),
        "histogram": histogram(*(names or ("negative", "positive"))),
    }


def task(title: str, auc: float | None, no_lung: float = 0.64) -> dict[str, Any]:
    titles = {
        "frame": "8-pixel frame of a 64 x 64 thumbnail",
        "form": "size, aspect, file type",
        "thumbnail": "8 x 8 thumbnail",
    }
    baselines = {
        name: {
            "title": what,
            "auc": figure(no_lung - 0.02 * i),
            "difference": figure((auc or 0) - no_lung + 0.02 * i, 0.07),
            "roc": roc(no_lung - 0.02 * i),
        }
        for i, (name, what) in enumerate(titles.items())
    }
    calibration = {
        "images": 240,
        "brier": 0.23,
        "ece": 0.06,
        "slope": 0.8,
        "intercept": 0.02,
        "reliability": {"x": [0.1, 0.3, 0.5, 0.7, 0.9], "y": [0.15, 0.28, 0.44, 0.71, 0.8]},
        "decision": line(0.4, -0.02),
        "decision_all": {"x": [0.01, 0.3, 0.5, 0.99], "y": [0.41, 0.2, -0.1, -30.0]},
    }
    subgroups = {
        "view": {"PA": brief(auc, 160, 70), "AP": brief(auc, 80, 30)},
        "sex": {"F": brief(auc, 90, 40), "M": brief(auc, 130, 55), "not stated": brief(None, 20, 0)},
    }
    return {
        "title": title,
        "positive": "covid19",
        "negative": "pneumonia",
        "score": "p_covid19",
        "figures": group(auc),
        "calibration": calibration if auc else None,
        "baselines": baselines if auc else {},
        "subgroups": subgroups if auc else {},
        "sources": ["cohen"],
    }


def tasks(shift: float = 0.0) -> dict[str, Any]:
    external = task("Sensitivity to COVID-19 on a source never trained on, network of split train", None)
    for point in external["figures"]["at"].values():
        point |= {"specificity": None, "specificity_when_chosen": proportion(40, 100)}
    return {
        HONEST: task("COVID-19 against other pneumonia within cohen, out of fold", 0.66 + shift),
        HONEST + ", PA": task("COVID-19 against other pneumonia within cohen, PA, out of fold", 0.63 + shift),
        "pneumonia against normal, nih": task("Pneumonia against normal within nih, out of fold", 0.71 + shift, 0.55),
        "pneumonia against normal, kermany": task("Pneumonia against normal within kermany, out of fold", 0.96, 0.83),
        "covid19 against the rest, hannover": task("COVID-19 against the rest, hannover, out of fold", None),
        POOLED: task("COVID-19 against the rest, pooled, out of fold", 0.97 + shift / 10, 0.99),
        "external": external,
    }


def recipe(paper: str = "basu", variant: str = "vgg16", profile: str = "small") -> Recipe:
    """The paper's profile has twice the epochs and twice the side of the small one."""
    small = profile == "small"
    return Recipe(
        paper=paper,
        variant=variant,
        profile=profile,
        architecture=paper.capitalize(),
        options={"backbone": variant},
        classes=("normal", "pneumonia", "covid19"),
        loss="cross-entropy",
        score="p_covid19",
        resize=192,
        crop=160 if small else 320,
        epochs=4 if small else 8,
        images_per_epoch=2500,
        learning_rate=1e-4,
        batch=8,
        optimiser="sgd",
    )


def record(paper: str, variant: str, protocol: str, profile: str = "small", seconds: int = 4000) -> dict[str, Any]:
    run = {"train": 2000, "test": 500, "train_by_class": {"covid19": 100}, "epochs": 4, "seconds": 800, "loss": 0.2}
    return {
        "paper": paper,
        "variant": variant,
        "profile": profile,
        "protocol": protocol,
        "task": "covid19",
        "recipe": json.loads(json.dumps(plain(recipe(paper, variant, profile)))),
        "differences": ["Images of 160 pixels: two CPU cores.", "Fewer epochs."],
        "data": {"manifest_sha256": "ab" * 32, "images": {"cohen/covid19": 300, "nih/normal": 400}, "skipped": 0},
        "runs": [{"name": f"fold{i}", **run} for i in range(5)],
        "seed": 20,
        "code": {"version": "0.1.0", "sha256": "cd" * 32},
        "hardware": "2 CPU cores",
        "versions": {"python": "3.11.2", "torch": "2.10.0"},
        "started": "2025-01-02T03:04:05+00:00",
        "seconds": seconds,
    }


def of_tests(auc: float = 0.95) -> dict[str, Any]:
    names = ["normal", "pneumonia", "covid19"]
    per_class = {
        name: {"precision": proportion(90, 100), "recall": proportion(85, 100), "f1": figure(0.87)} for name in names
    }
    return {
        "score": "p_covid19",
        "positive": "covid19",
        "figures": group(auc, *names),
        "one_against_rest": {name: group(0.9, *names) for name in names},
        "classes": {
            "names": names,
            "confusion": [[197, 36, 9], [42, 351, 5], [0, 2, 98]],
            "accuracy": proportion(646, 740),
            "macro": {"precision": figure(0.88), "recall": figure(0.87), "f1": figure(0.87)},
            "per_class": per_class,
        },
        "sources": {"cohen": group(0.66, *names), "nih": group(None, *names)},
        "of_runs": {"auc": {"values": [0.94, 0.96], "mean": 0.95, "deviation": 0.014}},
        "runs": ["split0", "split1"],
    }


def lungs() -> dict[str, Any]:
    names = ("as it is", "lungs blanked", "lung boxes blanked", "lungs only")
    energy = {"inside": figure(0.41), "area": figure(0.3), "more_than_area": figure(0.11), "empty": 2}
    random = {"layers": 1, "of": 20, "images": 30, "spearman": figure(0.4), "kendall": figure(0.3), "empty": 0}
    return {
        "absent": "",
        "images": {"covid19": 100, "pneumonia": 57},
        "outlines": {"mask": 157},
        "auc": {name: figure(0.66 - 0.02 * i) for i, name in enumerate(names)},
        "fall": {name: figure(0.02 * i) for i, name in enumerate(names) if i},
        "mean_score": {name: figure(0.6) for name in names},
        "heatmap_images": 30,
        "energy": {"covid19": energy},
        "randomisation": {"covid19": [random, random | {"layers": 5}]},
    }


def anomaly() -> dict[str, Any]:
    quantiles = {"0.05": 0.001, "0.25": 0.002, "0.5": 0.003, "0.75": 0.004, "0.95": 0.009}
    spread = {"images": 100, "mean": figure(0.0031, 0.0004), "deviation": 0.001, "quantiles": quantiles}
    return {
        "scores": {"reconstruction_error": {"kermany/normal": spread, "all/normal": spread}},
        "auc": {"reconstruction_error": {"covid19 against normal": figure(0.62), "pneumonia against normal": None}},
        "histograms": {"reconstruction_error": histogram("normal", "pneumonia", "covid19")},
    }


def experiment(
    paper: str = "basu", variant: str = "vgg16", protocol: str = "folds", shift: float = 0.0, **more: Any
) -> dict[str, Any]:
    honest = protocol == "folds"
    made = {
        "record": record(paper, variant, protocol),
        "title": f"{paper} {variant}, {protocol}, small profile",
        "test": of_tests(),
        "published": [],
        "tasks": tasks(shift) if honest else {},
        "lungs": lungs() if honest else None,
        "anomaly": anomaly() if paper == "jahan" else None,
    }
    return made | more


def evaluation(*experiments: dict[str, Any], combination: dict[str, Any] | None = None) -> dict[str, Any]:
    keys = ("paper", "variant", "protocol")
    return {
        "experiments": {"/".join(each["record"][key] for key in keys) + "-small": each for each in experiments},
        "combination": combination,
        "method": {"auc": "95 % percentile interval, 2000 bootstrap draws of patients"},
        "manifest": {"sha256": "ab" * 32, "images": 6676, "patients": 4000},
    }


def members(question: str, where: str, more: float, names: tuple[str, ...] = ("zhang", "basu")) -> dict[str, Any]:
    """What each member is worth; the last is the best, and the ensemble `more` than it."""
    alone = {name: figure(0.70 + 0.02 * i) for i, name in enumerate(names)}
    ensemble = alone[names[-1]]["value"] + more
    without = {name: {"auc": figure(ensemble - 0.01), "loss": figure(0.01, 0.03)} for name in (*names, "jahan")}
    return {
        "question": question,
        "where": where,
        "images": 240,
        "positives": 100,
        "ensemble": figure(ensemble),
        "unconditional": figure(ensemble + 0.013),
        "members": alone,
        "best": names[-1],
        "more_than_best": figure(more, 0.02),
        "without": without if len(names) > 1 else {},
    }


def gate() -> dict[str, Any]:
    return {
        "kinds": ["frontal", "frontal turned 90", "lateral", "other"],
        "threshold": 0.73,
        "distance": 16.6,
        "measured": {
            "frontal, cohen, out of fold": [322, 3],
            "frontal, nih, val": [152, 9],
            "lateral, as it is": [36, 36],
            "lateral, turned, mirrored, inverted": [540, 538],
            "body part (drawn)": [900, 813],
            "other: clouds": [80, 79],
        },
        "told": {"frontal": proportion(1029, 1029), "frontal turned 90": proportion(1020, 1029)},
    }


def target(name: str, condition: dict[str, Any] | None = None) -> dict[str, Any]:
    points = {"balanced": {"threshold": 0.32}, "high-sensitivity": {"threshold": 0.12}}
    return {
        "name": name,
        "operating_points": points,
        "disagreement": {"bound": 4.66, "share": 0.05, "error": 0.1, "error_beyond": 0.26},
        "reference": {"positive": {"images": 400}, "negative": {"images": 600}},
        **({"condition": condition} if condition else {}),
    }


def bundle() -> dict[str, Any]:
    """The evaluation of an exported bundle: `training.export`."""
    on_val = {
        "val, cohen": task("COVID-19 against the rest, cohen, split val, network of split train", 0.81),
        "val, nih": task("COVID-19 against the rest, nih, split val, network of split train", None),
        "val, adults": task("COVID-19 against the rest, adults, split val, network of split train", 0.93),
        "val, pneumonia against normal, nih": task("Pneumonia against normal within nih, out of fold", 0.84),
    }
    for each in on_val.values():
        each["baselines"] = {}
        if each["calibration"]:
            each["calibration"]["decision_all"] = line(0.41, -30.0)
        for point in each["figures"]["at"].values():
            point["thresholds"] = [0.31]
    return {
        "bundle": "starter",
        "release": "9.8.7",
        "experiments": {},
        "unreadable": 0,
        "combination": {"members": ["zhang", "basu"], "images": 6000, "tasks": tasks() | on_val},
        "members": [
            members("covid19", "cohen", -0.004),
            members("covid19", "cohen, PA", 0.006),
            members("abnormal", "nih", 0.04),
        ],
        "gate": gate(),
        "targets": [
            target("covid19", {"target": "abnormal", "threshold": 0.05}),
            target("pneumonia"),
            target("abnormal"),
        ],
        "method": {"AUC": "95 % percentile interval over 2000 bootstrap draws of patients"},
        "manifest": {"sha256": "ab" * 32, "images": 6676, "patients": 4000},
    }
