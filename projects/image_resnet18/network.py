"""ResNet18 (He et al., 2015), as torchvision builds it; torchvision itself has no CPU build beside this torch."""

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inward != outward:
            self.around = nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(within)) + self.around(x))


def resnet18(classes: int = 1000, channels: int = 3, width: int = 64) -> nn.Module:
    """Images [N, channels, H, W] → scores [N, classes], not normalised.

    Args:
        width: channels of the first stage; each of the three after it has twice as many.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inward = width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        layers += [Block(inward, factor * width, stride), Block(factor * width, factor * width, 1)]
        inward = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inward, classes))
