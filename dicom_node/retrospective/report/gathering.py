"""What a report tells without the truth: counts, scores over time and by scanner, members, and the flagged studies."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.domain import Decision, StudyState
from dicom_node.retrospective.report.validation import Labelled

if TYPE_CHECKING:
    from dicom_node.retrospective.report.answers import StudyAnswer
    from dicom_node.retrospective.report.labels import Labels

MOST_SHOWN = 200  # flagged studies, on the page; the tables have all
_MOST_COMPARED = 50_000  # images of which the members are compared


@dataclass(slots=True)
class Gathered:
    """Grows with each study; of scores it keeps the numbers alone.

    Attributes
    ----------
    scores
        Of each study with an answer, by what is grouped (``day``, ``scanner``, ``view``) and by group.
    members
        Of each image, the members' probabilities, as long as there are not too many.
    labelled, without_answer, unlabelled
        Studies with a label and an answer; with a label and none; without a label.
    """

    target: str
    labels: Labels | None = None
    states: Counter[str] = field(default_factory=Counter)
    study_reasons: Counter[str] = field(default_factory=Counter)
    image_states: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    thresholds: Counter[float] = field(default_factory=Counter)
    scores: dict[str, dict[str, array[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_floats))
    )
    flags: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    members: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    labelled: list[Labelled] = field(default_factory=list)
    label_thresholds: set[float] = field(default_factory=set)
    without_answer: int = 0
    unlabelled: int = 0
    never_came: int = 0
    _shown: list[tuple[float, int, StudyAnswer]] = field(default_factory=list)

    def add(self, study: StudyAnswer) -> None:
        """One more study."""
        self.states[study.state] += 1
        if study.reason:
            self.study_reasons[study.reason] += 1
        self.never_came += study.not_landed
        for image in study.images:
            self.image_states[image.state] += 1
            if image.state == "declined":
                self.declined[image.reason or "unknown"] += 1
            if image.state == "failed":
                self.failed[image.reason or "unknown"] += 1
            if image.targets:
                self.releases[image.release] += 1
            self._compare(image.members.get(self.target, {}))
        truth = self.labels.of(study) if self.labels is not None else None
        if self.labels is not None and truth is None:
            self.unlabelled += 1
        strongest = study.strongest(self.target)
        if strongest is None:
            self.without_answer += truth is not None
            return
        image, told = strongest
        flagged = study.flagged(self.target)
        self.decisions[study.decision(self.target) or ""] += 1
        self.thresholds[told.threshold] += 1
        for name, group in (
            ("day", study.study_date),
            ("scanner", image.scanner or "not stated"),
            ("view", image.view),
        ):
            self.scores[name][group].append(told.probability)
            self.flags[name][group] += flagged
        if flagged:
            self._show(told.probability, study)
        if truth is not None and self.labels is not None:
            patient = self.labels.patient_of(study)
            self.label_thresholds.add(told.threshold)
            self.labelled.append(
                Labelled(told.probability, flagged, truth, patient, image.sex, image.age, image.view, image.scanner)
            )

    def _compare(self, members: object) -> None:
        if isinstance(members, dict) and members and len(next(iter(self.members.values()), ())) < _MOST_COMPARED:
            if self.members and self.members.keys() != members.keys():
                return  # without one of them: the others are compared on other images
            for name, probability in members.items():
                self.members[name].append(probability)

    def _show(self, probability: float, study: StudyAnswer) -> None:
        entry = (probability, -sum(self.decisions.values()), study)
        if len(self._shown) < MOST_SHOWN:
            heapq.heappush(self._shown, entry)
        else:
            heapq.heappushpop(self._shown, entry)

    @property
    def shown(self) -> list[StudyAnswer]:
        """The flagged studies with the highest probabilities, the highest first."""
        return [study for _, _, study in sorted(self._shown, reverse=True)]

    @property
    def studies(self) -> int:
        """Studies in the run."""
        return sum(self.states.values())

    def flow(self) -> list[tuple[str, int]]:
        """Studies and images on their way, as a person follows it."""
        answered = sum(self.decisions.values())
        return [
            ("Studies found", self.studies),
            ("– not fetched yet", self.states[StudyState.FOUND] + self.states[StudyState.RETRIEVING]),
            ("– being screened", self.states[StudyState.RETRIEVED] + self.states[StudyState.SCREENED]),
            ("– already screened by this release", self.study_reasons["already_screened"]),
            ("– failed", self.states[StudyState.FAILED]),
            ("Images", sum(self.image_states.values())),
            ("– declined", sum(self.declined.values())),
            ("– failed", sum(self.failed.values())),
            ("– never came", self.never_came),
            ("Studies with an answer", answered),
            ("– flagged", self.decisions[Decision.FLAGGED]),
            ("– indeterminate", self.decisions[Decision.INDETERMINATE]),
            ("– not flagged", self.decisions[Decision.NOT_FLAGGED]),
        ]


def _floats() -> array[float]:
    return array("f")
