"""Networks for small images: CIFAR ResNets, two LeNets, and torchvision ResNets with a small stem."""

import functools

import torchvision
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A, section 4.2 of the ResNet paper)."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.stride, self.extra = stride, width_out - width_in

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:  # new channels start at zero, half on each side
            shortcut = pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return relu(out + shortcut)


class CifarResNet(nn.Module):
    """The ResNet of He et al. for small images: stages of 16, 32 and 64 channels, pooling, `fc`."""

    def __init__(self, blocks: int, num_classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(width_in: int, width_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(width_in, width_out, stride)
        return nn.Sequential(first, *(BasicBlock(width_out, width_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        return self.fc(x.mean(dim=(2, 3)))  # (N, num_classes)


class LeNet(nn.Module):
    """A LeNet with 3×3 convolutions, batch norm and a wider hidden layer, for small images on a CPU.

    The hidden layer sees a 3 × 3 grid of positions, which helps if objects are centred. Feature maps are pooled before
    batch norm, which then processes a quarter of the values.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (self._convolution(*of) for of in ((3, 32), (32, 64), (64, 64)))
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(width) for width in (32, 64, 64))
        self.hidden, self.bn4 = nn.Linear(576, 256, bias=False), nn.BatchNorm1d(256)
        self.fc = nn.Linear(256, num_classes)

    @staticmethod
    def _convolution(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
        convolution = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return convolution

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(max_pool2d(self.conv1(x), 2)))  # (N, 32, H/2, W/2)
        x = relu(self.bn2(max_pool2d(self.conv2(x), 2)))  # (N, 64, H/4, W/4)
        third = x.shape[-1] // 3
        x = max_pool2d(self.conv3(x), x.shape[-1] - 2 * third, third)
        x = relu(self.bn3(x))  # (N, 64, 3, 3)
        return self.fc(relu(self.bn4(self.hidden(x.flatten(1)))))  # (N, num_classes)


class StridedLeNet(nn.Module):
    """A LeNet whose 3×3 convolutions have stride 2 instead of pooling, for long training on a CPU.

    For 28-px images, it has 0.32 M weights and 1.9 M multiply-adds per image (`LeNet`: 0.20 M and 6.2 M). The hidden
    layer sees a 4 × 4 grid of positions. Images need at least 25 pixels.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (LeNet._convolution(*of, 2) for of in ((3, 32), (32, 64), (64, 64)))
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(width) for width in (32, 64, 64))
        self.hidden, self.bn4 = nn.Linear(1024, 256, bias=False), nn.BatchNorm1d(256)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (N, 32, H/2, W/2)
        x = relu(self.bn2(self.conv2(x)))  # (N, 64, H/4, W/4)
        x = relu(self.bn3(self.conv3(x)))  # (N, 64, H/8, W/8)
        if (side := x.shape[-1]) != 4:  # 25 to 32 pixels need no pooling
            x = max_pool2d(x, side - 3 * (side // 4), side // 4)  # (N, 64, 4, 4)
        return self.fc(relu(self.bn4(self.hidden(x.flatten(1)))))  # (N, num_classes)


def small_stem(arch: str, num_classes: int = 1000) -> nn.Module:
    """Return a torchvision ResNet for small images: first convolution 3×3 with stride 1, no pooling after it."""
    network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


SMALL, NEW_STEM = "_small", "conv1.weight"  # suffix of these names; the layer that differs from torchvision's
CIFAR = {f"resnet{6 * blocks + 2}": blocks for blocks in (3, 5, 7, 9, 18)}  # He et al.: 20 to 110 layers
# Networks of torchvision that exist with a stem for small images, as <name>_small.
STEMS = ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2")
PROJECT_NETWORKS = {
    "lenet": LeNet,
    "lenet_strided": StridedLeNet,
    **{arch: functools.partial(CifarResNet, blocks) for arch, blocks in CIFAR.items()},
    **{arch + SMALL: functools.partial(small_stem, arch) for arch in STEMS},
}
