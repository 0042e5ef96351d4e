"""Whole models in PyTorch, as published, at small size: their names are those of public code."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class DCGAN(nn.Module):
    """The generator of Radford et al. 2015, arXiv:1511.06434, as in PyTorch's examples, behind a dense layer."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(10, 16 * 4 * 4)
        self.main = nn.Sequential(
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(self.project(z).view(-1, 16, 4, 4))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, with batch norm, for images of any size."""

    def __init__(self):
        super().__init__()
        block = lambda i, o: nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
        )
        self.enc = nn.ModuleList([block(3, 8), block(8, 16)])
        self.mid = block(16, 16)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.dec = nn.ModuleList([block(32, 16), block(16, 8)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        seen = []
        for encode in self.enc:
            x = encode(x)
            seen.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.mid(x)
        for up, decode in zip(self.up, self.dec, strict=True):
            beside = seen.pop()
            x = decode(torch.cat([up(x, output_size=beside.shape[2:]), beside], 1))
        return self.out(x)


class ESPCN(nn.Module):
    """Shi et al. 2016, arXiv:1609.05158, with a slope that is learned."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.PReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.PReLU()
        )
        self.up = nn.Sequential(nn.Conv2d(8, 27, 3, padding=1), nn.PixelShuffle(3))

    def forward(self, x):
        return self.up(self.body(x))


class HiFiGAN(nn.Module):
    """The generator of Kong, Kim & Bae 2020, arXiv:2010.05646, with weight norm."""

    def __init__(self):
        super().__init__()
        self.conv_pre = weight_norm(nn.Conv1d(10, 16, 7, padding=3))
        self.ups = nn.ModuleList(
            [
                weight_norm(nn.ConvTranspose1d(16, 8, 16, 8, padding=4)),
                weight_norm(nn.ConvTranspose1d(8, 4, 4, 2, padding=1)),
            ]
        )
        self.resblocks = nn.ModuleList(
            [weight_norm(nn.Conv1d(c, c, 3, dilation=3, padding=3)) for c in (8, 4)]
        )
        self.conv_post = weight_norm(nn.Conv1d(4, 1, 7, padding=3))

    def forward(self, x):
        x = self.conv_pre(x)
        for up, block in zip(self.ups, self.resblocks, strict=True):
            x = up(functional.leaky_relu(x, 0.1))
            x = x + block(functional.leaky_relu(x, 0.1))
        return torch.tanh(self.conv_post(functional.leaky_relu(x, 0.1)))


class Decoder(nn.Module):
    """Like the decoder of a latent diffusion model (Rombach et al. 2021, arXiv:2112.10752), without attention."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16, eps=1e-6), nn.GroupNorm(4, 16, eps=1e-6)])
        self.upsamplers = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)])
        self.conv_out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        for norm, conv in zip(self.norms, self.upsamplers, strict=True):
            x = functional.silu(norm(x))
            x = conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(x)
