"""The networks by the names that manifests and recipes use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models.basu import Basu2020
from training.models.jahan import Jahan2022
from training.models.minaee import Minaee2020
from training.models.zhang import Zhang2020
from training.models.zhong import Zhong2020

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from training.models.network import Network

NETWORKS: dict[str, Callable[..., Network]] = {
    network.__name__: network for network in (Zhang2020, Basu2020, Jahan2022, Zhong2020, Minaee2020)
}


def build(architecture: str, options: Mapping[str, Any]) -> Network:
    """The network of that name, with random weights.

    Raises
    ------
    ValueError
        Naming the architecture, or the option, that is not known.
    """
    if architecture not in NETWORKS:
        raise ValueError(f"unknown architecture {architecture}; known: {', '.join(NETWORKS)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        return NETWORKS[architecture](**given)
    except TypeError as error:
        raise ValueError(f"{architecture} does not take the options {dict(options)}") from error
