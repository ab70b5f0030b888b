"""What a bundle's gate declines and lets in: a chapter of `docs/accuracy.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.evaluation.plots import Mark
from dicom_node.evaluation.statistics import proportion
from dicom_node.evaluation.wording import share
from training.evaluation.chapter import Chapter, bullets, forest, paragraph
from training.evaluation.wording import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.evaluation.shape import Figure
    from training.evaluation.chapter import Drawing

    Measured = Sequence[tuple[str, Figure]]  # kind, and the share that is declined

TITLE = "What is declined: is it a frontal chest X-ray at all?"
MOST_LOST, LEAST_DECLINED = 0.02, 0.95  # of frontal X-rays, and of what is none
_HOW = (
    "Before anything is scored, a gate declines what it does not take for a frontal chest X-ray. Every image below was "
    "judged by a gate that had not been fitted on its patient or, if drawn, on its family of drawings. Intervals are "
    "Clopper-Pearson over images; kinds are never pooled, as the share of each in practice is not known. The limits of "
    "the gate were chosen on the frontal X-rays out of fold, of which they therefore lose few; the gate that is "
    "shipped was fitted on all but `val` and `external`, with every lateral and slice."
)
_MADE = (
    "**Real** are the frontal X-rays, the laterals and the CT slices; their turned, mirrored and inverted versions are "
    "made from the same few images, so that those intervals are far too narrow. **Cut** are the body parts: a fifth to "
    "two fifths of the side of a chest X-ray, enlarged and turned, which shows a shoulder or some ribs. **Drawn** is "
    "everything that is called *other*, some of it from a spoilt X-ray. Real X-rays of other body parts (hands, knees, "
    "abdomens, skulls) were hardly at hand: **nothing is claimed about them**."
)


def decline_check(evaluation: Mapping[str, Any]) -> Chapter:
    """Kinds of images against declined and admitted."""
    gate = evaluation.get("gate")
    if not gate:
        return Chapter(
            TITLE,
            (
                paragraph(
                    "The bundle has no gate, or nothing was measured of it: **it answers whatever image it is shown**, "
                    "a lateral view or a knee too, unless the DICOM header says what it is."
                ),
            ),
        )
    found = {name: figure for name, (shown, hits) in gate["measured"].items() if (figure := proportion(hits, shown))}
    frontal = sorted(
        ((name, figure) for name, figure in found.items() if name.startswith("frontal")),
        key=lambda each: -each[1]["value"],
    )
    others = sorted(
        ((name, figure) for name, figure in found.items() if not name.startswith("frontal")),
        key=lambda each: each[1]["value"],
    )
    return Chapter(
        TITLE,
        (
            paragraph(_HOW),
            paragraph(_MADE),
            paragraph(
                f"Asked for are at least {100 * LEAST_DECLINED:.0f} % declined of each kind that is no frontal X-ray, "
                f"and at most {100 * MOST_LOST:.0f} % declined of the frontal ones. {_missed(frontal, others)}"
            ),
            bullets(_misses(frontal, others)),
            *_confusion("Frontal chest X-rays: declined is wrong", frontal, "frontal"),
            *_confusion("Everything else: admitted is wrong", others, "no frontal"),
            *_told(gate.get("told") or {}),
        ),
    )


def _short_of(frontal: Measured, others: Measured) -> Measured:
    return [
        *((name, figure) for name, figure in others if figure["value"] < LEAST_DECLINED),
        *((name, figure) for name, figure in frontal if figure["value"] > MOST_LOST),
    ]


def _missed(frontal: Measured, others: Measured) -> str:
    short = len(_short_of(frontal, others))
    kinds = len(frontal) + len(others)
    return f"**{short} of {kinds} kinds miss that**:" if short else f"All {kinds} kinds keep to it."


def _misses(frontal: Measured, others: Measured) -> list[str]:
    """Each kind that misses its mark, and whether chance alone could do so."""
    said = []
    for name, figure in _short_of(frontal, others):
        mark = MOST_LOST if name.startswith("frontal") else LEAST_DECLINED
        low, high = figure["low"], figure["high"]
        chance = low is not None and high is not None and low <= mark <= high
        said.append(f"{name}: {share(figure)} declined{'; its interval holds the mark' if chance else ''}.")
    return said


def _confusion(title: str, kinds: Measured, name: str) -> tuple[str | Drawing, ...]:
    if not kinds:
        return (f"### {title}\n", paragraph("Not measured."))
    rows = [
        (kind, _made(kind), f"{figure['n']:,}", f"{figure['hits']:,}", f"{figure['n'] - figure['hits']:,}",
         share(figure))
        for kind, figure in kinds
    ]  # fmt: skip
    caption = f"Share that is declined, {'of frontal X-rays' if name == 'frontal' else 'of what is none'}, by kind."
    marks = [Mark(f"{kind} ({figure['n']:,})", figure) for kind, figure in kinds]
    return (
        f"### {title}\n",
        markdown_table(("Kind", "Made", "Images", "Declined", "Admitted", "Share declined"), rows),
        forest(f"declined, {name}", caption, marks, "Share declined", level=None),
    )


def _made(kind: str) -> str:
    if kind.startswith("other"):
        return "drawn"
    if kind.startswith("body part"):
        return "cut from chest X-rays"
    return "real, then turned, mirrored, inverted" if "turned" in kind else "real"


def _told(told: Mapping[str, Figure | None]) -> tuple[str, ...]:
    title = "### Turned and inverted X-rays\n"
    rows = sorted(((name, figure) for name, figure in told.items() if figure), key=lambda each: each[1]["value"])
    if not rows:
        return (title, paragraph("Whether turned and inverted ones are told right was not measured."))
    text = (
        "Frontal X-rays shown in each of eight ways, and how often the gate told exactly which: what it tells is "
        "turned back before it is scored. Each row is of the same images, turned by us; none came so from a hospital."
    )
    return title, paragraph(text), markdown_table(("Shown as", "Told right"), [(n, share(f)) for n, f in rows])
