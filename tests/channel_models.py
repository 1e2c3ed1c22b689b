"""Small models whose channels are moved, joined and normed in the ways that people's models do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def conv(inputs: int, outputs: int, **how: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **how), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """Layers by name, a forward of its own, and norms as they are after training."""

    def __init__(self, answer: Any, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.answer = answer
        for name, layer in layers.items():
            setattr(self, name, layer)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
                if part.affine:
                    nn.init.normal_(part.bias, 0, 0.2)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.answer(self, *inputs)


class Frozen(nn.Module):
    """A norm all of whose numbers are buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.view(1, -1, 1, 1) * (self.variance.view(1, -1, 1, 1) + 1e-5).rsqrt()
        return (x - self.mean.view(1, -1, 1, 1)) * scale + self.bias.view(1, -1, 1, 1)


def shuffled(x: torch.Tensor, groups: int = 2) -> torch.Tensor:
    n, channels, high, wide = x.shape
    return x.view(n, groups, channels // groups, high, wide).transpose(1, 2).reshape(n, channels, high, wide)


def body(move: Any, wide: int = 16, to: int = 16) -> Net:
    """Two convolutions and a head; `move`: what happens to the first one's (n, wide, 8, 8) before the second."""
    layers = {"move": move} if isinstance(move, nn.Module) else {}
    return Net(
        lambda net, x: net.head(net.b(getattr(net, "move", move)(net.a(x))).mean((2, 3))),
        a=conv(3, wide), b=conv(to, 16), head=nn.Linear(16, 4), **layers,
    )  # fmt: skip


def dense(net: Net, x: torch.Tensor) -> torch.Tensor:
    x = net.a(x)
    for layer in (net.b, net.c):
        x = torch.cat([x, layer(x)], 1)
    return net.head(net.n(x).relu().mean((2, 3)))


def split_unit(net: Net, x: torch.Tensor) -> torch.Tensor:
    left, right = net.a(x).chunk(2, 1)
    return net.head(net.c(shuffled(torch.cat([left, net.b(right)], 1))).mean((2, 3)))


def excited(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.b(net.a(x))
    gate = functional.hardsigmoid(net.up(net.down(y.mean((2, 3), keepdim=True)).relu()))
    return net.head((net.a(x) + net.c(y * gate)).mean((2, 3)))


def qkv(net: Net, x: torch.Tensor) -> torch.Tensor:
    n, length, _ = x.shape
    x = net.a(x)
    q, k, v = net.qkv(x).reshape(n, length, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
    return net.head((x + net.down(net.up(x + net.p(y)).relu())).mean(1))


def classed(net: Net, x: torch.Tensor) -> torch.Tensor:
    tokens = net.b(net.a(x)).flatten(2).transpose(1, 2)
    return net.head(torch.cat([net.w.expand(len(x), -1, -1), tokens], 1).mean(1))


SERIES = (6, 8)  # steps, features
MODELS: dict[str, tuple[Any, tuple[int, ...], set[str], set[str]]] = {
    # name: (model, a sample, layers that are cut, layers left whole that yield no output)
    "nothing odd": (lambda: body(lambda x: x), (3, 8, 8), {"a.0", "b.0"}, set()),
    "shuffle": (lambda: body(shuffled), (3, 8, 8), {"b.0"}, {"a.0"}),
    "flip": (lambda: body(lambda x: x.flip(1)), (3, 8, 8), {"b.0"}, {"a.0"}),
    "softmax over channels": (lambda: body(lambda x: x.softmax(1)), (3, 8, 8), {"b.0"}, {"a.0"}),
    "not 0 at 0": (lambda: body(torch.sigmoid), (3, 8, 8), {"b.0"}, {"a.0"}),
    "mean over channels": (lambda: body(lambda x: x / x.mean(1, keepdim=True)), (3, 8, 8), {"b.0"}, {"a.0"}),
    "groups by view": (
        lambda: body(lambda x: x.unflatten(1, (4, 4)).cumsum(1).flatten(1, 2)), (3, 8, 8), {"b.0"}, {"a.0"}
    ),
    "interleaved": (
        lambda: body(lambda x: torch.stack([x, -x], 2).flatten(1, 2), to=32), (3, 8, 8), {"a.0", "b.0"}, set()
    ),
    "pixel shuffle": (lambda: body(nn.PixelShuffle(2), to=4), (3, 8, 8), {"b.0"}, {"a.0"}),
    "pixel unshuffle": (lambda: body(nn.PixelUnshuffle(2), to=64), (3, 8, 8), {"b.0"}, {"a.0"}),
    "gated": (lambda: body(lambda x: functional.glu(x, 1), to=8), (3, 8, 8), {"b.0"}, {"a.0"}),
    "halves": (lambda: body(lambda x: x[:, :8] + x[:, 8:], to=8), (3, 8, 8), {"b.0"}, {"a.0"}),
    "chosen by number": (lambda: body(lambda x: x[:, torch.arange(15, -1, -1)]), (3, 8, 8), {"b.0"}, {"a.0"}),
    "group norm": (lambda: body(nn.GroupNorm(4, 16)), (3, 8, 8), {"b.0"}, {"a.0"}),
    "norm without weights": (lambda: body(nn.BatchNorm2d(16, affine=False)), (3, 8, 8), {"a.0", "b.0"}, set()),
    "frozen norm": (lambda: body(Frozen(16)), (3, 8, 8), {"a.0", "b.0"}, set()),
    "constant of its width": (lambda: body(lambda x: x - torch.ones(16, 1, 1)), (3, 8, 8), {"b.0"}, {"a.0"}),
    "grouped": (
        lambda: Net(lambda net, x: net.head(net.b(net.g(net.a(x))).mean((2, 3))), a=conv(3, 16),
                    g=conv(16, 32, groups=4), b=conv(32, 16), head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0", "g.0", "b.0"}, set(),
    ),
    "depthwise, excited, residual": (
        lambda: Net(excited, a=conv(3, 16), b=conv(16, 16, groups=16), down=nn.Conv2d(16, 8, 1), up=nn.Conv2d(8, 16, 1),
                    c=conv(16, 16), head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0", "b.0", "c.0", "up", "down"}, set(),
    ),
    "dense blocks": (
        lambda: Net(dense, a=conv(3, 16), b=conv(16, 16), c=conv(32, 16), n=nn.BatchNorm2d(48), head=nn.Linear(48, 4)),
        (3, 8, 8), {"a.0", "b.0", "c.0"}, set(),
    ),
    "split, joined and shuffled": (
        lambda: Net(split_unit, a=conv(3, 16), b=nn.Sequential(conv(8, 8), conv(8, 8)), c=conv(16, 16),
                    head=nn.Linear(16, 4)),
        (3, 8, 8), {"b.0.0", "c.0"}, {"a.0", "b.1.0"},
    ),
    "flatten from channel-last": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x).permute(0, 2, 3, 1).flatten(1)).relu()), a=conv(3, 16),
                    b=nn.Linear(1024, 16), head=nn.Linear(16, 4)),
        (3, 8, 8), {"b"}, {"a.0"},
    ),
    "tokens": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x).flatten(2).transpose(1, 2)).relu().mean(1)), a=conv(3, 16),
                    b=nn.Linear(16, 16), head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0", "b"}, set(),
    ),
    "view of a dense layer": (
        lambda: Net(lambda net, x: net.b(net.a(x).relu().view(len(x), -1, 2, 2)), a=nn.Linear(8, 64),
                    b=nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2))),
        (8,), {"a", "b.0"}, set(),
    ),
    "lstm": (
        lambda: Net(lambda net, x: net.head(net.b(net.r(net.a(x).relu())[0][:, -1]).relu()), a=nn.Linear(8, 16),
                    r=nn.LSTM(16, 16, batch_first=True), b=nn.Linear(16, 16), head=nn.Linear(16, 4)),
        SERIES, {"a", "b"}, set(),
    ),
    "gru": (
        lambda: Net(lambda net, x: net.head(net.b(net.r(net.a(x).relu())[0][:, -1]).relu()), a=nn.Linear(8, 16),
                    r=nn.GRU(16, 16, batch_first=True), b=nn.Linear(16, 16), head=nn.Linear(16, 4)),
        SERIES, {"b"}, {"a"},
    ),
    "attention by hand": (
        lambda: Net(qkv, a=nn.Linear(8, 16), qkv=nn.Linear(16, 48), p=nn.Linear(16, 16), up=nn.Linear(16, 32),
                    down=nn.Linear(32, 16), head=nn.Linear(16, 4)),
        SERIES, {"a", "p", "up", "down"}, {"qkv"},
    ),
    "transformer": (
        lambda: Net(lambda net, x: net.head(net.t(net.a(x)).mean(1)), a=nn.Linear(8, 16),
                    t=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), head=nn.Linear(16, 4)),
        SERIES, {"t.linear1"}, {"a", "t.linear2", "t.self_attn.out_proj"},
    ),
    "one tensor in two layers": (
        lambda: tied(Net(lambda net, x: net.head(net.c(net.b(net.a(x).relu()).relu()).relu()), a=nn.Linear(8, 16),
                         b=nn.Linear(16, 16), c=nn.Linear(16, 16), d=nn.Linear(8, 16), head=nn.Linear(16, 4))),
        (8,), {"head.0"}, {"a", "b", "c", "d"},
    ),
    "a parameter that convolves": (
        lambda: Net(lambda net, x: net.head(net.b(functional.conv2d(net.a(x), net.w)).mean((2, 3))), a=conv(3, 16),
                    w=nn.Parameter(torch.randn(16, 16, 3, 3)), b=conv(16, 16), head=nn.Linear(16, 4)),
        (3, 8, 8), {"b.0"}, {"a.0"},
    ),
    "a parameter that scales": (
        lambda: Net(lambda net, x: net.head((net.a(x) * net.w).mean((2, 3))), a=conv(3, 16),
                    w=nn.Parameter(torch.randn(1, 16, 1, 1)), head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0"}, set(),
    ),
    "used twice, features out": (
        lambda: Net(lambda net, x: {"f": [net.c(net.b(net.b(net.a(x))))], "g": net.c(net.a(x))}, a=conv(3, 16),
                    b=conv(16, 16), c=conv(16, 16)),
        (3, 8, 8), {"a.0", "b.0"}, set(),
    ),
    "learned positions": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x) + net.w).mean((2, 3))), a=conv(3, 16), b=conv(16, 16),
                    w=nn.Parameter(torch.randn(1, 16, 8, 8)), head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0", "b.0"}, set(),
    ),
    "class token": (
        lambda: Net(classed, a=conv(3, 16), b=conv(16, 16), w=nn.Parameter(torch.randn(1, 1, 16)),
                    head=nn.Linear(16, 4)),
        (3, 8, 8), {"a.0"}, {"b.0"},
    ),
    "assertion": (lambda: body(asserted), (3, 8, 8), {"b.0"}, {"a.0"}),
    "weight norm": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x).relu()).mean((2, 3))), b=conv(16, 16), head=nn.Linear(16, 4),
                    a=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3))),
        (3, 8, 8), {"b.0"}, {"a"},
    ),
    "no gradient below": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x).detach()).mean((2, 3))), a=conv(3, 16), b=conv(16, 16),
                    head=nn.Linear(16, 4)),
        (3, 8, 8), {"b.0"}, {"a.0"},
    ),
    "differences": (
        lambda: body(lambda x: functional.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 0, 1))), (3, 8, 8), {"b.0"}, {"a.0"}
    ),
    "second order": (
        lambda: Net(lambda net, x: net.head(gram(net.b(net.a(x)).flatten(2)).flatten(1)), a=conv(3, 16), b=conv(16, 8),
                    head=nn.Linear(64, 4)),
        (3, 8, 8), {"a.0"}, {"b.0"},
    ),
    "the number of a channel": (
        lambda: Net(numbered, a=conv(3, 16), b=conv(16, 16), head=nn.Linear(16, 4)), (3, 8, 8), {"a.0"}, {"b.0"}
    ),
    "volumes": (
        lambda: Net(lambda net, x: net.head(net.b(net.a(x[:, None]).relu()).relu().mean((2, 3, 4))),
                    head=nn.Linear(16, 4), a=nn.Conv3d(1, 16, 3), b=nn.Conv3d(16, 16, 1)),
        (3, 8, 8), {"a", "b"}, set(),
    ),
}  # fmt: skip


def gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.transpose(1, 2)


def numbered(net: Net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = net.b(net.a(x)).mean((2, 3))
    return net.head(features), features.argmax(1)


def asserted(x: torch.Tensor) -> torch.Tensor:
    assert x.shape[1] == 16, "16 channels are wanted"
    return x


def tied(net: Net) -> Net:
    net.c.weight = net.b.weight
    net.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return net
