"""A small codec for music that keeps pitch: finely resolved log magnitudes in, log magnitudes out.

Waveform codecs of a few million parameters lose the notes of what they code long after they have learnt its timbre
(measured in this project on a small EncodecModel). Here the network never sees a phase: `encode` turns a waveform into
log magnitudes of a short-time Fourier transform fine enough to part semitones, a convolutional network and a residual
vector quantiser turn 40 ms of them into two codes, and a second network regresses the log magnitudes back. Phases are
found when decoding: peaks run on at their own frequency (single pass spectrogram inversion: Beauregard, Harish & Wyse
2015), then fast Griffin-Lim (Perraudin, Balazs & Søndergaard 2013) makes overlapping frames agree. Nothing is random.

B batch, K codebooks, D codebook_dim, T' code frames, T' * stack spectral frames, T = T' * stack * hop_length samples,
F = n_fft / 2 + 1 frequency bins.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class SpectralCodecConfig(PreTrainedConfig):
    """Shape of a `SpectralCodecModel`.

    Args:
        sampling_rate: Hz.
        n_fft: samples in a window of the Fourier transform.
        hop_length: samples from one spectral frame to the next.
        stack: spectral frames in one code frame.
        codebook_size: codes in a codebook.
        num_codebooks: codebooks of the residual quantiser.
        codebook_dim: size of a code's vector.
        hidden_size: channels of the networks.
        encoder_layers, decoder_layers: ConvNeXt blocks.
        encoder_kernel, decoder_kernel: their width in code frames. A narrow encoder makes a code depend on little but
            its own 40 ms, so that the same sound gets the same code anywhere: easier for a language model.
        griffin_lim_steps: iterations when decoding.
    """

    model_type = "anygpt_spectral_codec"

    def __init__(
        self,
        sampling_rate=16000,
        n_fft=1024,
        hop_length=160,
        stack=4,
        codebook_size=1024,
        num_codebooks=2,
        codebook_dim=64,
        hidden_size=192,
        encoder_layers=2,
        decoder_layers=4,
        encoder_kernel=3,
        decoder_kernel=7,
        griffin_lim_steps=8,
        **kwargs,
    ):
        self.sampling_rate = sampling_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.stack = stack
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.codebook_dim = codebook_dim
        self.hidden_size = hidden_size
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.encoder_kernel = encoder_kernel
        self.decoder_kernel = decoder_kernel
        self.griffin_lim_steps = griffin_lim_steps
        super().__init__(**kwargs)

    @property
    def samples_per_frame(self) -> int:
        """Samples in one code frame."""
        return self.hop_length * self.stack

    @property
    def frame_rate(self) -> float:
        """Code frames per second (Hz)."""
        return self.sampling_rate / self.samples_per_frame


class SpectralCodecBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022) over time: [B, C, T'] -> [B, C, T']."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))
        return x + self.project(F.gelu(self.expand(y))).transpose(1, 2)


class SpectralCodecQuantizer(nn.Module):
    """Residual vector quantiser: each codebook codes what the ones before it left over."""

    def __init__(self, config: SpectralCodecConfig):
        super().__init__()
        shape = (config.num_codebooks, config.codebook_size, config.codebook_dim)
        self.codebooks = nn.Parameter(torch.randn(shape), requires_grad=False)  # [K, codes, D], trained by averaging

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, T', D] -> codes [B, K, T']."""
        codes = []
        for book in self.codebooks:
            # argmax of 2 z.e - |e|^2 is argmin of |z - e|^2
            code = (2 * z @ book.T - book.square().sum(-1)).argmax(-1)
            z = z - book[code]
            codes.append(code)
        return torch.stack(codes, 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, K, T'] -> [B, T', D]."""
        return sum(book[code] for book, code in zip(self.codebooks, codes.unbind(1)))


class SpectralCodecModel(PreTrainedModel):
    """See the head of this file. 16 kHz mono, 25 code frames per second, 2 codebooks of 1,024 by default."""

    config_class = SpectralCodecConfig
    base_model_prefix = "spectral_codec"
    main_input_name = "input_values"
    # Phases run on through a sound: pieces that were decoded apart would not meet.
    decodes_whole = True

    def __init__(self, config: SpectralCodecConfig):
        super().__init__(config)
        width, bins = config.hidden_size, config.n_fft // 2 + 1
        self.input_projection = nn.Conv1d(bins * config.stack, width, 1)
        self.encoder = nn.Sequential(
            *[SpectralCodecBlock(width, config.encoder_kernel) for _ in range(config.encoder_layers)]
        )
        self.to_codes = nn.Linear(width, config.codebook_dim)
        self.quantizer = SpectralCodecQuantizer(config)
        self.from_codes = nn.Linear(config.codebook_dim, width)
        self.decoder = nn.Sequential(
            *[SpectralCodecBlock(width, config.decoder_kernel) for _ in range(config.decoder_layers)]
        )
        self.output_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, bins * config.stack)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initialisation of convolutions, linear layers and norms is what we want."""

    # ---- public

    @torch.no_grad()
    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Waveforms to codes.

        Args:
            values: float [B, T] mono in [-1, 1] at `config.sampling_rate`, T >= 1. Zeros fill up the last code frame.

        Returns:
            int64 codes [B, K, T'], T' = ceil(T / samples_per_frame).

        Raises:
            ValueError: wrong shape or type, no samples, or some that are not finite.
        """
        if values.ndim != 2 or not values.is_floating_point() or 0 in values.shape:
            raise ValueError(
                f"Got values {tuple(values.shape)} of {values.dtype}; allowed: floating [batch, samples], one or "
                "more of each, mono. Average stereo channels and scale integers to [-1, 1] first."
            )
        if not values.isfinite().all():
            raise ValueError("Got NaN or infinite audio samples, allowed finite numbers; check how the file was read.")
        return self.quantizer.encode(self.embed(self.log_magnitudes(values)))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes to waveforms.

        Args:
            codes: integer [B, K, T'], 0 <= code < codebook_size, T' >= 1.

        Returns:
            values [B, T' * samples_per_frame], float32, within [-1, 1].

        Raises:
            ValueError: wrong shape, type or range.
        """
        books, size = self.config.num_codebooks, self.config.codebook_size
        integer = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        if codes.ndim != 3 or codes.shape[1] != books or codes.shape[2] == 0 or not integer:
            raise ValueError(
                f"Got codes {tuple(codes.shape)} of {codes.dtype}; allowed: integer [batch, {books}, frames >= 1]."
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ValueError(
                f"Got codes from {int(codes.min())} to {int(codes.max())}; allowed: 0 to {size - 1}. "
                "Codes are integers of a codebook, not token ids."
            )
        return self.invert(self.reconstruct(self.quantizer.decode(codes.long())))

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """values [B, T] -> values coded and decoded [B, T' * samples_per_frame]."""
        return self.decode(self.encode(input_values))

    # ---- the parts that training uses

    def log_magnitudes(self, values: torch.Tensor) -> torch.Tensor:
        """values [B, T] -> log(magnitude + 0.001) [B, T' * stack, F] float32; a sine of amplitude 1 gives 1."""
        values = F.pad(values.float(), (0, -values.shape[1] % self.config.samples_per_frame))
        spectrum = self._transform(F.pad(values, (self._margin, self._margin)))
        return torch.log(spectrum.abs() * self._scale + 1e-3)

    def embed(self, log_magnitudes: torch.Tensor) -> torch.Tensor:
        """[B, T' * stack, F] -> vectors before quantisation [B, T', D]."""
        batch, frames, bins = log_magnitudes.shape
        stacked = log_magnitudes.reshape(batch, frames // self.config.stack, -1).transpose(1, 2)
        scaled = (stacked * 0.5 + 2).to(self.input_projection.weight.dtype)  # log magnitudes lie in -6.9..0
        hidden = self.encoder(self.input_projection(scaled))
        return self.to_codes(hidden.transpose(1, 2))

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors after quantisation [B, T', D] -> log(magnitude + 0.001) [B, T' * stack, F]."""
        hidden = self.decoder(self.from_codes(z).transpose(1, 2)).transpose(1, 2)
        stacked = (self.output_projection(self.output_norm(hidden)) - 2) * 2
        return stacked.reshape(z.shape[0], z.shape[1] * self.config.stack, -1)

    def invert(self, log_magnitudes: torch.Tensor) -> torch.Tensor:
        """log(magnitude + 0.001) [B, T' * stack, F] -> values [B, T]."""
        magnitude = (log_magnitudes.float().exp() - 1e-3).clamp(min=0) / self._scale
        spectrum = torch.polar(magnitude, self._first_phases(magnitude))
        previous = torch.zeros_like(spectrum)
        for _ in range(self.config.griffin_lim_steps):
            consistent = self._transform(self._overlap_add(spectrum))
            ahead = consistent + 0.99 * (consistent - previous)  # the step that makes Griffin-Lim fast
            spectrum = magnitude * ahead / ahead.abs().clamp(min=1e-9)
            previous = consistent
        return self._overlap_add(spectrum)[:, self._margin : -self._margin].clamp(-1, 1)

    # ---- Fourier transform without torch.stft: its frames are centred on multiples of the hop and one too many

    @property
    def _margin(self) -> int:
        return (self.config.n_fft - self.config.hop_length) // 2

    @property
    def _scale(self) -> float:
        return 4 / self.config.n_fft  # half the window's sum, inverted

    def _window(self, device: torch.device) -> torch.Tensor:
        return torch.hann_window(self.config.n_fft, device=device)  # float32, whatever the weights are

    def _transform(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, T + 2 margin] -> complex [B, T / hop_length, F]."""
        return torch.fft.rfft(
            padded.unfold(1, self.config.n_fft, self.config.hop_length) * self._window(padded.device)
        )

    def _overlap_add(self, spectrum: torch.Tensor) -> torch.Tensor:
        """complex [B, T / hop_length, F] -> [B, T + 2 margin], the least-squares inverse of `_transform`."""
        window = self._window(spectrum.device)
        pieces = torch.fft.irfft(spectrum, n=self.config.n_fft) * window
        weight = window.square().expand(1, spectrum.shape[1], -1)
        return self._add(pieces) / self._add(weight).clamp(min=1e-3)

    def _add(self, pieces: torch.Tensor) -> torch.Tensor:
        """Overlapping pieces [B, N, n_fft], each a hop after the one before, summed: [B, n_fft + hop * (N - 1)]."""
        hop, (batch, count, length) = self.config.hop_length, pieces.shape
        rows = -(-length // hop)
        pieces = F.pad(pieces, (0, rows * hop - length)).reshape(batch, count, rows, hop)
        total = pieces.new_zeros(batch, count + rows - 1, hop)
        for row in range(rows):
            total[:, row : row + count] += pieces[:, :, row]
        return total.reshape(batch, -1)[:, : length + hop * (count - 1)]

    def _first_phases(self, magnitude: torch.Tensor) -> torch.Tensor:
        """[B, N, F] -> phases [B, N, F] (rad): every bin advances at the frequency of the peak it belongs to."""
        bins = magnitude.shape[-1]
        log = torch.log(magnitude + 1e-9)
        left, right = F.pad(log, (1, 0))[..., :-1], F.pad(log, (0, 1))[..., 1:]
        peak = (log > left) & (log >= right)
        peak[..., 0] = peak[..., -1] = False
        # Vertex of the parabola through the peak and its neighbours, in bins
        curve = (left - 2 * log + right).clamp(max=-1e-6)
        index = torch.arange(bins, device=log.device, dtype=log.dtype)
        vertex = index + (0.5 * (left - right) / curve).clamp(-0.5, 0.5)
        # Nearest peak on either side of each bin, by running maximum and minimum of the peaks' indices
        below = torch.where(peak, index, index.new_tensor(-1e6)).cummax(-1).values
        above = torch.where(peak, index, index.new_tensor(1e6)).flip(-1).cummin(-1).values.flip(-1)
        owner = torch.where(index - below <= above - index, below, above).clamp(0, bins - 1).long()
        frequency = vertex.gather(-1, owner) * (2 * torch.pi / self.config.n_fft)  # rad per sample
        phase = (frequency.double() * self.config.hop_length).cumsum(1)
        # Neighbouring bins of one peak alternate in sign, since the window starts at the frame's left edge.
        return (phase + torch.pi * (index % 2)).remainder(2 * torch.pi).float()
