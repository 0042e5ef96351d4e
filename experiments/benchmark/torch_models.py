"""The models of `experiments.benchmark.models` in torch, eager as its users run them. Importing this needs torch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmark import in_torch, timing
from experiments.benchmark.shared import B1, RATE, Prepared, Sizes, dcgan_batch, unet_batch


def prepare(name: str, sizes: Sizes, peer: str) -> Prepared:
    """Returns the training step of a model under 'torch' or 'torch_channels_last', ready."""
    place = in_torch.device()
    torch.manual_seed(0)
    to: Any = {"memory_format": torch.channels_last} if peer == in_torch.LAST else {}
    parts = [part.to(place, **to) for part in networks(name, sizes)]
    build: Any = {"dcgan": _dcgan, "unet": _unet}[name]
    call = build(*parts, sizes, place, to)
    losses = lambda: tuple(loss.detach().cpu().numpy() for loss in call())
    return Prepared(timing.Subject(peer, call, in_torch.wait), losses)


def networks(name: str, sizes: Sizes) -> tuple[nn.Module, ...]:
    """Returns generator and discriminator, or a U-Net, with as many parameters as ours."""
    if name == "unet":
        return (_UNet(sizes),)
    side, widths = sizes.size >> len(sizes.widths), sizes.widths
    up: list[nn.Module] = [
        nn.Linear(sizes.latent, side**2 * widths[0]),
        nn.Unflatten(1, (widths[0], side, side)),
    ]
    for i, o in zip(widths, (*widths[1:], 3), strict=True):
        up += [nn.BatchNorm2d(i), nn.ReLU(), nn.ConvTranspose2d(i, o, 4, stride=2, padding=1)]
    mirrored = (3, *reversed(widths))
    down: list[nn.Module] = []
    for i, o in pairwise(mirrored):
        down += [nn.Conv2d(i, o, 4, stride=2, padding=1), *([nn.BatchNorm2d(o)] if down else [])]
        down += [nn.LeakyReLU(0.2)]
    dense = nn.Linear(side**2 * mirrored[-1], 1)
    return nn.Sequential(*up, nn.Tanh()), nn.Sequential(*down, nn.Flatten(), dense)


def _dcgan(
    generator: nn.Module,
    discriminator: nn.Module,
    sizes: Sizes,
    place: torch.device,
    to: dict[str, Any],
) -> Any:
    optimizers = [
        torch.optim.Adam(m.parameters(), RATE, betas=(B1, 0.999))
        for m in (generator, discriminator)
    ]
    z, real = _tensors(dcgan_batch(sizes), place)
    real = real.contiguous(**to)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            fake = generator(z)
        optimizers[1].zero_grad()
        on_real, on_fake = discriminator(real), discriminator(fake)
        loss_d = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        loss_d.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)  # noqa: FBT003
        loss_g = functional.softplus(-discriminator(generator(z))).mean()
        loss_g.backward()
        optimizers[0].step()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(True)  # noqa: FBT003
        return loss_d, loss_g

    return step


class _UNet(nn.Module):  # type: ignore[misc,unused-ignore]  # Any where torch is not installed
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        widths = (*sizes.widths, 2 * sizes.widths[-1])
        ins = (3, *widths[:-1])
        self.downs = nn.ModuleList(_pair(i, o) for i, o in zip(ins, widths, strict=True))
        back = tuple(reversed(sizes.widths))
        steps = pairwise(reversed(widths))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in steps)
        self.merges = nn.ModuleList(_pair(2 * w, w) for w in back)
        self.last = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcuts = []
        for level, pair in enumerate(self.downs):
            if level:
                shortcuts.append(x)
                x = functional.max_pool2d(x, 2)
            x = pair(x)
        for up, pair in zip(self.ups, self.merges, strict=True):
            x = pair(torch.cat([shortcuts.pop(), up(x)], 1))
        y: torch.Tensor = self.last(x)
        return y


def _pair(i: int, o: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU()
    )


def _unet(model: nn.Module, sizes: Sizes, place: torch.device, to: dict[str, Any]) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(B1, 0.999))
    x, want = (t.contiguous(**to) for t in _tensors(unet_batch(sizes), place))

    def step() -> tuple[torch.Tensor]:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), want)
        loss.backward()
        optimizer.step()
        return (loss,)

    return step


def _tensors(arrays: Sequence[np.ndarray], place: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(a).to(place) for a in arrays]
