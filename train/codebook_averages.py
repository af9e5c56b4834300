"""Codebooks that learn by moving averages instead of gradients (van den Oord et al. 2017, arXiv 1711.00937, appendix).

A code moves to the average of the vectors that chose it; a code that is chosen no more is moved onto a current vector.
All processes of a run count together and keep the same codebooks.
"""

from collections.abc import Sequence

import torch
from accelerate.utils import broadcast, reduce
from torch import nn
from torch.nn import functional as F


class CodebookAverages(nn.Module):
    """The averages behind the books of a residual quantiser, each book [codes, D], which stay the codec's own tensors.

    Args:
        decay: of the averages, per step.
        dead: a code chosen less often than this share of the usual is moved,
        revived: and then counts as chosen with this share of the usual.
    """

    def __init__(self, books: Sequence[torch.Tensor], decay: float, dead: float, revived: float):
        super().__init__()
        self.books = list(books)
        self.decay, self.dead, self.revived = decay, dead, revived
        self.register_buffer("sums", torch.stack([book.detach() for book in books]))  # [K, codes, D]
        self.register_buffer("counts", torch.ones(self.sums.shape[:2], device=self.sums.device))
        self.register_buffer("used", torch.zeros(len(books), dtype=torch.long, device=self.sums.device))

    @torch.no_grad()
    def start(self, vectors: torch.Tensor, rounds: int) -> None:
        """Books from vectors [N, D]: random ones, moved by `rounds` of k-means."""
        for book, sums, counts in zip(self.books, self.sums, self.counts, strict=True):
            book.copy_(picked(vectors, len(book)) + 0.01 * vectors.std() * torch.randn_like(book))
            counts.fill_(1)
            for _ in range(rounds):
                code = nearest(vectors, book)
                counts.copy_(torch.bincount(code, minlength=len(book)).clamp(min=0.5))
                sums.zero_().index_add_(0, code, vectors)
                book.copy_(torch.where(counts[:, None] >= 1, sums / counts[:, None], book))
            for tensor in (book, counts):
                tensor.copy_(broadcast(tensor))
            sums.copy_(book * counts[:, None])
            vectors = vectors - book[nearest(vectors, book)]

    @torch.no_grad()
    def quantise(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [N, D] -> what each level adds to their approximation [K, N, D]; the books learn from them."""
        levels = []
        for level, book in enumerate(self.books):
            code = nearest(vectors, book)
            levels.append(book[code])
            self._follow(level, vectors, code)
            vectors = vectors - levels[-1]
        return torch.stack(levels)

    def _follow(self, level: int, vectors: torch.Tensor, code: torch.Tensor) -> None:
        book, sums, counts = self.books[level], self.sums[level], self.counts[level]
        chosen = reduce(torch.bincount(code, minlength=len(book)).float(), "sum")
        counts.lerp_(chosen, 1 - self.decay)
        sums.lerp_(reduce(torch.zeros_like(sums).index_add_(0, code, vectors), "sum"), 1 - self.decay)
        usual = chosen.sum() / len(book)
        dead = counts < self.dead * usual
        fresh = broadcast(picked(vectors, len(book))) * self.revived * usual
        sums.copy_(torch.where(dead[:, None], fresh, sums))
        counts.copy_(torch.where(dead, self.revived * usual, counts))
        book.copy_(sums / counts[:, None])
        self.used[level] = (chosen > 0).sum()


class SphereAverages(nn.Module):
    """The averages behind one book [codes, D] of unit vectors: nearest means the smallest angle (Yu et al. 2022,
    arXiv 2110.04627), and a dead code moves to where the error is large."""

    DECAY = 0.98
    DEAD = 0.02  # a row used less often than this per step is moved

    def __init__(self, book: torch.Tensor):
        super().__init__()
        self.books = [book]  # in a list: the book stays the codec's own
        self.register_buffer("count", torch.ones(len(book), device=book.device))  # [codes] uses per step
        self.register_buffer("total", book.detach().clone())  # [codes, D] sum of what chose a row

    @torch.no_grad()
    def put(self, chosen: torch.Tensor | slice | int, vectors: torch.Tensor) -> None:
        """Moves the chosen rows onto the given vectors."""
        self.books[0][chosen] = broadcast(vectors.contiguous())
        self.count[chosen] = 1.0
        self.total[chosen] = self.books[0][chosen]

    @torch.no_grad()
    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """Nearest row of each vector [M, D] -> [M]."""
        return (z @ self.books[0].T).argmax(dim=1)

    @torch.no_grad()
    def follow(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """Learns from vectors z [M, D] that chose codes [M]."""
        count = torch.bincount(codes, minlength=len(self.count)).float()
        total = torch.zeros_like(self.total).index_add_(0, codes, z)
        self.count.lerp_(reduce(count, "sum"), 1 - self.DECAY)
        self.total.lerp_(reduce(total, "sum"), 1 - self.DECAY)
        self.books[0].copy_(F.normalize(self.total, dim=1))
        dead = self.count < self.DEAD
        if dead.any():
            error = 1 - (z * self.books[0][codes]).sum(1)
            # Where the error is large, but not only in the very worst place.
            self.put(dead, z[torch.multinomial(error.clamp_min(1e-6), int(dead.sum()), replacement=True)])

    def in_use(self) -> int:
        return int((self.count > 2 * self.DEAD).sum())


def nearest(vectors: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Vectors [N, D] -> the row [N] of the book at the smallest distance: argmax of 2 v.e - |e|^2."""
    return (2 * vectors @ book.T - book.square().sum(1)).argmax(1)


def picked(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows of vectors [N, D], with repeats."""
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
