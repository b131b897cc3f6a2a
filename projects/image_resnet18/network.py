"""ResNet18 (He et al., 2015) with torchvision's architecture. torchvision has no CPU
build for this torch version.
"""

import torch
from torch import nn


class Block(nn.Module):
    """A residual block: two convolutions and a shortcut."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inward != outward:
            self.around = nn.Sequential(
                nn.Conv2d(inward, outward, 1, stride, bias=False),
                nn.BatchNorm2d(outward),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(within)) + self.around(x))


def resnet18(classes: int = 1000, channels: int = 3, width: int = 64) -> nn.Module:
    """Return a network from images [N, channels, H, W] to scores [N, classes], not
    normalised.

    Args:
        width: the channels of the first stage. Each of the next three stages doubles
            the number.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inward = width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        layers += [Block(inward, factor * width, stride), Block(factor * width, factor * width, 1)]
        inward = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inward, classes))
