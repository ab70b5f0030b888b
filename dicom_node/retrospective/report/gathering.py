"""What a report tells without the truth: counts, scores over time and by scanner, members, and the flagged studies."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dicom_node.domain import Decision, State, StudyState
from dicom_node.retrospective.report.validation import Labelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.retrospective.report.answers import ImageAnswer, StudyAnswer
    from dicom_node.retrospective.report.labels import Labels

MOST_SHOWN = 200  # flagged studies, on the page; the tables have all
MOST_COMPARED = 50_000  # images of which the members are compared
_ALREADY_SCREENED = "already_screened"  # as `dicom_node.retrospective.studies` says it
_FETCHED = (StudyState.RETRIEVED, StudyState.SCREENED, StudyState.DONE)
_ENDED = (StudyState.DONE, StudyState.FAILED)


class Step(NamedTuple):
    """How many came so far on the way from the archive to an answer; a `part` of the step before it that is none."""

    key: str
    label: str
    number: int
    part: bool = True


@dataclass(slots=True)
class Gathered:
    """Grows with each study; of scores it keeps the numbers alone.

    Attributes
    ----------
    not_in_pacs
        Lines of a cohort file to which the PACS has no study.
    study_failures, declined, failed
        By reason: studies that failed, images that were declined, images that failed.
    scores
        Of each study with an answer, by what is grouped (``day``, ``scanner``, ``view``) and by group.
    members
        By the names of the members that answered, rising: of each image their probabilities and the threshold, one
        after the other, as long as there are not too many.
    labelled, without_answer, unlabelled
        Studies with a label and an answer; with a label and none; without a label.
    labels_used
        Keys of the labels that name a study of the run.
    """

    target: str
    labels: Labels | None = None
    not_in_pacs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    study_failures: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    thresholds: Counter[float] = field(default_factory=Counter)
    scores: dict[str, dict[str, array[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_floats))
    )
    flags: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    members: dict[tuple[str, ...], array[float]] = field(default_factory=lambda: defaultdict(_doubles))
    labelled: list[Labelled] = field(default_factory=list)
    label_thresholds: set[float] = field(default_factory=set)
    labels_used: set[str] = field(default_factory=set)
    without_answer: int = 0
    unlabelled: int = 0
    _shown: list[tuple[float, int, StudyAnswer]] = field(default_factory=list)

    def add(self, study: StudyAnswer) -> None:
        """One more study."""
        self.states[study.state] += 1
        self.counts["already_screened"] += study.reason == _ALREADY_SCREENED
        if study.state is StudyState.FAILED:
            self.study_failures[study.reason or "unknown"] += 1
            self.counts["never_came"] += study.missing
        else:
            self.counts["not_fetched"] += study.missing
        self.counts["images"] += len(study.images) + study.waiting
        self.counts["waiting"] += study.waiting
        for image in study.images:
            self._count(image)
        truth = self._truth(study)
        strongest = study.strongest(self.target)
        if strongest is None:
            self.counts["studies_without_answer"] += study.state in _ENDED
            self.without_answer += truth is not None
            return
        image, told = strongest
        flagged = study.flagged(self.target)
        self.decisions[study.decision(self.target) or ""] += 1
        self.thresholds[told.threshold] += 1
        for name, group in ("day", study.study_date), ("scanner", image.scanner or "not stated"), ("view", image.view):
            self.scores[name][group].append(told.probability)
            self.flags[name][group] += flagged
        if flagged:
            self._show(told.probability, study)
        if truth is not None and self.labels is not None:
            self.label_thresholds.add(told.threshold)
            self.labelled.append(
                Labelled(
                    score=told.probability,
                    decision=study.decision(self.target) or "",
                    positive=truth,
                    patient=self.labels.patient_of(study),
                    sex=image.sex,
                    age=image.age,
                    view=image.view,
                    scanner=image.scanner,
                    images=tuple(
                        (one.targets[self.target].probability, one.targets[self.target].reach)
                        for one in study.images
                        if self.target in one.targets
                    ),
                )
            )

    def _count(self, image: ImageAnswer) -> None:
        if image.state == State.DECLINED:
            self.declined[image.reason or "unknown"] += 1
        elif image.state == State.FAILED:
            self.failed[image.reason or "unknown"] += 1
        elif image.targets:
            self.counts["screened"] += 1
            self.releases[image.release] += 1
        else:
            self.counts["waiting"] += 1
        if self.target in image.members:
            self._compare(image.members[self.target], image.targets[self.target].threshold)

    def _compare(self, members: Mapping[str, float], threshold: float) -> None:
        names = tuple(sorted(members))
        row = len(names) + 1
        if len(self.members[names]) < MOST_COMPARED * row:
            self.members[names].extend([*(members[name] for name in names), threshold])

    def _truth(self, study: StudyAnswer) -> bool | None:
        if self.labels is None:
            return None
        truth = self.labels.of(study)
        if truth is None:
            self.unlabelled += 1
        else:
            self.labels_used.add(self.labels.named(study))
        return truth

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
    def unknown_labels(self) -> int:
        """Labels that name no study of the run."""
        return len(self.labels.truth) - len(self.labels_used) if self.labels is not None else 0

    def flow(self) -> list[Step]:
        """Studies and images on their way, as a person follows it."""
        states, counts, decisions = self.states, self.counts, self.decisions
        fetched = sum(states[state] for state in _FETCHED)
        declined, failed = sum(self.declined.values()), sum(self.failed.values())
        return [
            Step("studies", "Studies found", sum(states.values()), part=False),
            Step("studies_waiting", "not fetched yet", states[StudyState.FOUND] + states[StudyState.RETRIEVING]),
            Step("studies_fetched", "fetched", fetched - counts["already_screened"]),
            Step("studies_already_screened", "already screened by this release", counts["already_screened"]),
            Step("studies_failed", "failed", states[StudyState.FAILED]),
            Step("not_in_pacs", "Lines of the file that name no study", self.not_in_pacs, part=False),
            Step("images", "Images in the ledger", counts["images"], part=False),
            Step("images_screened", "screened", counts["screened"]),
            Step("images_declined", "declined", declined),
            Step("images_failed", "failed", failed),
            Step("images_waiting", "still waiting", counts["waiting"]),
            Step("images_not_fetched", "Images not fetched yet", counts["not_fetched"], part=False),
            Step("images_never_came", "Images that never came", counts["never_came"], part=False),
            Step("studies_answered", "Studies with an answer", sum(decisions.values()), part=False),
            Step("flagged", "flagged", decisions[Decision.FLAGGED]),
            Step("indeterminate", "indeterminate", decisions[Decision.INDETERMINATE]),
            Step("not_flagged", "not flagged", decisions[Decision.NOT_FLAGGED]),
            Step(
                "studies_without_answer",
                "Studies of which every image was declined, failed or never came",
                counts["studies_without_answer"],
                part=False,
            ),
        ]


def _floats() -> array[float]:
    return array("f")


def _doubles() -> array[float]:
    return array("d")
