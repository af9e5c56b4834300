"""What a waveform codec is trained by: a mel loss, and an adversary that tells decoded speech from real speech."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

MEL_BANDS = {256: 20, 512: 40, 1024: 80, 2048: 80}  # by window, samples


class MelLoss(nn.Module):
    """Mean over windows of L1 of log mel spectra plus a tenth of L1 of magnitudes, between waves [B, T].

    Slaney's norm divides by the bandwidth in Hz, so that the 0.001 under the logarithm is about -74 dB of a full
    scale sine: what is softer than that, such as the rounding to 16 bits, is not worth a code.
    """

    def __init__(self, rate: int):
        super().__init__()
        for size, bands in MEL_BANDS.items():
            mel = mel_filter_bank(size // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="htk")
            self.register_buffer(f"mel{size}", torch.tensor(mel.T, dtype=torch.float32))

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        loss = 0
        for size in MEL_BANDS:
            mel = getattr(self, f"mel{size}")
            a, b = (spectrum(wave, size).abs() for wave in (made, real))
            loss = loss + F.l1_loss((mel @ a + 1e-3).log(), (mel @ b + 1e-3).log()) + 0.1 * F.l1_loss(a, b)
        return loss / len(MEL_BANDS)


def spectrum(wave: torch.Tensor, size: int) -> torch.Tensor:
    """Wave [B, T] -> complex [B, size / 2 + 1, frames], a quarter window apart."""
    window = torch.hann_window(size, device=wave.device)
    return torch.stft(wave, size, size // 4, window=window, return_complex=True)


class Adversary(nn.Module):
    """Encodec's multi-scale STFT discriminator (arXiv 2210.13438), small: wave [B, T] -> per window (verdict, features
    of each layer)."""

    def __init__(self, windows=(1024, 512, 256), width: int = 16):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.windows = windows
        self.stacks = nn.ModuleList()
        for _ in windows:
            layers = [norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4)))]
            for i, dilation in enumerate((1, 2, 4)):
                channels = width if i == 0 else 2 * width
                conv = nn.Conv2d(channels, 2 * width, (3, 9), (1, 2), (dilation, 4), (dilation, 1))
                layers.append(norm(conv))
            layers += [
                norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
                norm(nn.Conv2d(2 * width, 1, 3, padding=1)),
            ]
            self.stacks.append(nn.ModuleList(layers))

    def forward(self, wave: torch.Tensor):
        verdicts = []
        for size, stack in zip(self.windows, self.stacks, strict=True):
            x = torch.view_as_real(spectrum(wave, size)).permute(0, 3, 2, 1) / size**0.5  # [B, 2, frames, frequencies]
            features = []
            for layer in stack[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            verdicts.append((stack[-1](x).float(), features))
        return verdicts

    def loss(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Hinge loss of the adversary itself."""
        pairs = zip(self(real), self(made.detach()), strict=True)
        return sum(F.relu(1 - r).mean() + F.relu(1 + m).mean() for (r, _), (m, _) in pairs) / len(self.windows)

    def loss_of_codec(self, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """What the codec pays: being recognised, and features unlike those of the real wave. The adversary itself gets
        no gradient."""
        total = 0
        with torch.no_grad():
            goals = self(real)
        self.requires_grad_(False)
        found = self(made)
        self.requires_grad_(True)
        for (verdict, features), (_, goal) in zip(found, goals, strict=True):
            unlike = [F.l1_loss(f.float(), g.float()) / (g.float().abs().mean() + 1e-4)
                      for f, g in zip(features, goal, strict=True)]  # fmt: skip
            total = total - 0.05 * verdict.mean() + 0.2 * sum(unlike) / len(unlike)
        return total / len(self.windows)
