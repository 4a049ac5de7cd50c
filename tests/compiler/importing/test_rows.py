"""Single functions of torch: each row of the table computes what torch does, whatever way the function is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.errors import GraphspecError
from compiler.importing.exported import read_module
from tests.compiler.importing.models import imported, relative, trained

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A function between a convolution and the logits."""

    def __init__(self, function: Function | nn.Module, channels: int | None = None, sides: int = 2) -> None:
        super().__init__()
        kind = nn.Conv2d if sides == 2 else nn.Conv1d
        self.conv = kind(3, 8, 3, padding=1)
        self.function = function
        self.last = kind(channels or 8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.function(self.conv(x)))
        return x.flatten(2).mean(2)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def in_place(x: Tensor) -> Tensor:
    y = x * 1.5
    F.relu_(y)
    return y + x


def split(x: Tensor) -> Tensor:
    a, b, c = x.split([2, 4, 2], 1)
    return torch.cat([c, b * -1.0, a], dim=1)


def last(x: Tensor) -> Tensor:
    y = F.gelu(x.permute(0, 2, 3, 1))
    return y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Squeeze and excitation with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        factor = self.expand(F.relu(self.reduce(means))).sigmoid()
        return x * factor.view(len(x), 8, 1, 1)


class Copied(Attention):
    """The same by copies of each number."""

    def forward(self, x: Tensor) -> Tensor:
        factor = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1).flatten(1)))).sigmoid()
        return factor[:, :, None, None].expand_as(x) * x


class PerChannel(nn.Module):
    """Parameters outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 2, 8).view(1, 8, 1, 1))
        self.shift = nn.Parameter(torch.linspace(0, 1, 8).view(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) * self.scale / 3.0 + 1.0


class ChannelsLast(nn.Module):
    """A block of ConvNeXt as published: all of it with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.gamma = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(F.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        return x + ((self.gamma * y - 0.5) / 2 + self.gamma + y).permute(0, 3, 1, 2)


class Standardised(nn.Module):
    """A convolution whose weight is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.norm())


def shortcut(x: Tensor) -> Tensor:
    """ResNet's for CIFAR: it skips pixels and adds channels of zeros."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


FUNCTIONS: dict[str, Function | nn.Module] = {
    "relu6": F.relu6, "hardtanh": nn.Hardtanh(0, 6), "clamp": lambda x: x.clamp(0, 6),
    "clamp_min": lambda x: x.clamp(0),
    "hard_swish": nn.Hardswish(inplace=True), "hard_sigmoid": F.hardsigmoid, "silu": F.silu, "gelu": nn.GELU(),
    "by_hand": lambda x: x * F.relu6(x + 3) / 6, "gate_by_hand": lambda x: F.relu6(x + 3) / 6,
    "swish_by_hand": lambda x: x * torch.sigmoid(x), "leaky": nn.LeakyReLU(0.2), "elu": nn.ELU(0.7), "tanh": torch.tanh,
    "prelu": nn.PReLU(8), "prelu_of_one": nn.PReLU(1), "softmax": lambda x: x.softmax(1), "identity": nn.Identity(),
    "sum": lambda x: torch.add(x, x.relu(), alpha=-0.5), "difference": lambda x: x - x.sigmoid(),
    "twice": lambda x: x + x,
    "in_place": in_place, "scaled": lambda x: 2 * x, "square": lambda x: x * x, "divided": lambda x: x / 7.0,
    "shuffled": shuffled, "pixel_last": last, "split": split, "chunk": lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),
    "part": lambda x: torch.cat([x[:, 5:], x[:, :5]], 1), "attention": Attention(), "copied": Copied(),
    "drops_channels": nn.Dropout2d(0.3), "per_channel": PerChannel(),
    "standardised": Standardised(), "group_norm": nn.GroupNorm(4, 8, eps=1e-3), "batch_norm": nn.BatchNorm2d(8, 1e-2),
    "no_affine": nn.BatchNorm2d(8, affine=False),
    "instance_norm": nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
    "instance_norm_alone": nn.Sequential(nn.InstanceNorm2d(8, eps=0.1), nn.ReLU()), "channels_last": ChannelsLast(),
    "instance_norm_of_training": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group_norm_alone": nn.GroupNorm(2, 8, affine=False), "no_shift": nn.LayerNorm((8, 9, 8), elementwise_affine=False),
    "norm_scaled": nn.Sequential(nn.GroupNorm(2, 8), PerChannel()), "clamped": lambda x: (x / 5).clamp(0, 1),
    "clamped_unevenly": nn.Hardtanh(0, 0.3), "pixels_and_back": lambda x: x.flatten(2).view(x.shape),
    "max_pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "avg_pool": nn.AvgPool2d((2, 3), 1, (1, 0)), "not_counted": nn.AvgPool2d(3, 2, 1, True, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)), "largest": nn.AdaptiveMaxPool2d(1),
    "mean": lambda x: x.mean(3, keepdim=True),
    "padded": lambda x: F.pad(x, (1, 2, 0, 3)), "mirrored": nn.ReflectionPad2d((1, 0, 2, 1)),
    "edge": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "cut": lambda x: x[:, :, 1:, 2:-1], "odd": lambda x: x[..., 1::2], "fewer": lambda x: x[:, :, :4:2, 3:6],
    "cut_by_padding": nn.ZeroPad2d((-1, 1, 0, -2)), "cut_by_ones": nn.ConstantPad2d((-1, 0, 0, -2), 1.0),
    "cut_pool": nn.Sequential(nn.ZeroPad2d((-1, 1, -1, 1)), nn.AvgPool2d(1, 2)),
    "cut_conv": nn.Sequential(nn.ZeroPad2d((-1, 1, 0, 0)), nn.Conv2d(8, 8, 3, padding=2)),
    "skipped": lambda x: x[:, :, ::3], "skipped_twice": lambda x: x[..., ::2][:, :, ::4, ::2],
    "depthwise": nn.Conv2d(8, 8, (1, 3), groups=8, bias=False),
    "multiplied": nn.Conv2d(8, 8, 3, 2, groups=2, dilation=2, padding=2),
    "same": nn.Conv2d(8, 8, 3, dilation=2, padding="same"),
    "padded_conv": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2)),
    "padded_pool": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2),
    "transposed": nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=2),
    "nearest": nn.Upsample(scale_factor=2), "bilinear": nn.Upsample((7, 12), mode="bilinear"),
    "dropout": nn.Dropout(0.3), "contiguous": lambda x: x.contiguous().clone(),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_same_as_our_op(name: str, tmp_path: Path) -> None:
    module = trained(Between(FUNCTIONS[name]))
    images = torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    _, _, found = imported(module, images[:2], tmp_path)
    with torch.no_grad():
        assert relative(found(images), module(images)) <= 2e-6


WIDER: dict[str, Function] = {
    "shortcut": shortcut, "uneven": lambda x: F.pad(x, (0, 0, 0, 0, 1, 7)),
    "with_border": lambda x: F.pad(x, (1, 0, 0, 2, 8, 0)), "read_twice": lambda x: shortcut(x) + shortcut(x.relu()),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDER)
def test_channels_of_zeros_are_those_of_a_convolution(name: str, tmp_path: Path) -> None:
    module = trained(Between(WIDER[name], 16))
    images = torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    _, graph, found = imported(module, images[:2], tmp_path)
    with torch.no_grad():
        assert relative(found(images), module(images)) <= 2e-6
    assert "max_pool" not in {node.op for node in graph.nodes()}, "the convolution skips the pixels"


SIGNALS: dict[str, nn.Module] = {
    "conv": nn.Conv1d(8, 8, 5, 2, 1), "max": nn.MaxPool1d(2), "avg": nn.AvgPool1d(3),
    "adaptive": nn.AdaptiveAvgPool1d(2),
    "transposed": nn.ConvTranspose1d(8, 8, 2, 2), "resize": nn.Upsample(scale_factor=2, mode="linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_are_taken_as_well(name: str, tmp_path: Path) -> None:
    module = trained(Between(SIGNALS[name], sides=1))
    signals = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(2))
    _, _, found = imported(module, signals[:2], tmp_path)
    with torch.no_grad():
        assert relative(found(signals), module(signals)) <= 2e-6


class Unknowns(nn.Module):
    """Two calls that no op of ours computes, in a module of its own, and one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Between(lambda x: x.cumsum(1).sin())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).cumsum(1)


REFUSED: dict[str, Function] = {
    "quotient": lambda x: x / x.exp(), "batch": lambda x: x.mean(0, keepdim=True).expand(len(x), -1, -1, -1),
    "odd_channels": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "number": lambda x: x * x.nonzero().shape[0], "ones": lambda x: F.pad(x[:, :6], (0, 0, 0, 0, 1, 1), value=1.0),
    "fewer_channels": lambda x: F.pad(x, (0, 0, 0, 0, -1, 1)),
    "pixels": lambda x: torch.cat([x, x], 2), "copies": lambda x: x.mean(3, keepdim=True).expand_as(x) * x,
    "sum_of_copies": lambda x: x + x.mean((2, 3), keepdim=True).expand_as(x), "approximate": nn.GELU("tanh"),
    "values": lambda x: x.clamp(-1, 1), "norm_of_rows": nn.LayerNorm(8), "norm_of_each": nn.LayerNorm((8, 9, 8)),
    "first_and_last": lambda x: (x.permute(0, 2, 3, 1) + x[:, :1, :1, :1]).permute(0, 3, 1, 2),
    "each_pixel": lambda x: (x.permute(0, 2, 3, 1) * torch.ones(9, 1, 1)).permute(0, 3, 1, 2),
    "softmax": lambda x: x.softmax(2), "corners": nn.UpsamplingBilinear2d(scale_factor=2), "gaussian": nn.CELU(0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_op_is_refused(name: str) -> None:
    with pytest.raises(GraphspecError, match="no op of ours computes"):
        read_module(Between(REFUSED[name]), torch.zeros(2, 3, 9, 8))


def test_a_refusal_names_every_call_with_its_place() -> None:
    with pytest.raises(GraphspecError) as caught:
        read_module(Unknowns(), torch.zeros(2, 3, 9, 8))
    message = str(caught.value)
    assert message.startswith("no op of ours computes 3 of its calls: cumsum, sin\n")
    line = Path(__file__).read_text().splitlines().index("        x = self.last(self.function(self.conv(x)))") + 1
    assert message.count(f"{__file__}:{line}") == 2
    assert "in inner.cumsum()" in message
    assert "  1 x sin" in message


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def found_pixels(x: Tensor) -> Tensor:
    return torch.zeros(9 if x.nonzero().shape[0] > 9 else 8)


@pytest.mark.parametrize("act", [branch, found_pixels])
def test_modules_that_cannot_be_traced_are_refused_in_one_line(
    act: Function, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GraphspecError, match=r"torch.export cannot trace Between: .*\n  try: "):
        read_module(Between(act), torch.zeros(2, 3, 9, 8))
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_module_with_several_results_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(GraphspecError, match="gives 2 values"):
        read_module(Two(), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "sigmoid"])
def test_what_the_loss_has_is_left_out_at_the_end(end: str) -> None:
    def finish(x: Tensor) -> Tensor:
        return x.sigmoid() if end == "sigmoid" else getattr(F, end)(x, dim=1)

    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Between(F.relu)

        def forward(self, x: Tensor) -> Tensor:
            return finish(self.inner(x))

    network = read_module(Ending(), torch.zeros(2, 3, 4, 4))
    assert network.end == end
    assert network.calls[network.output].op == "global_avg_pool" or network.shape(network.output) == (5,)
