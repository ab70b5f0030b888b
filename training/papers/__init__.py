"""One file per paper: its citation, its data, its recipes, its numbers, and where ours differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.papers import basu2020, jahan2022, minaee2020, zhang2020, zhong2020

if TYPE_CHECKING:
    from training.papers.paper import Paper

PAPERS: dict[str, Paper] = {
    module.PAPER.name: module.PAPER for module in (zhang2020, basu2020, jahan2022, zhong2020, minaee2020)
}
