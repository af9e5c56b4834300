"""Which rows make up which training sequence: a mixture of sources, packed without cutting, all a function of a seed.

A *pack* is a list of row numbers whose lengths add up to at most `capacity` ids. Attention stays inside each row
(`position_ids` that start again at 0), so packing changes no loss; it only leaves out the padding.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from numbers import Real

import numpy as np

WINDOW = 512  # packs that are planned together: enough for best fit to waste little, and for packs to be well mixed


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Positions in `lengths`, packed: the longest first, each where the least space is left over.

    Args:
        lengths: 1..capacity each.
        capacity: ids in a pack.
    """
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # (space left, pack), sorted
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[place])
        found = bisect_left(open_packs, (length, -1))
        if found < len(open_packs):
            space, pack = open_packs.pop(found)
        else:
            space, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(place)
        if space > length:
            insort(open_packs, (space - length, pack))
    return packs


class PackPlan:
    """An endless sequence of packs; `plan[i]` is the same in every process and every run.

    At any moment the ids drawn from the sources are in proportion to their rates, to within one row (the paper gives
    rates of sequences that hold one source each, which is the same share of ids). Inside a source the rows come in a
    new order every epoch, each exactly once.

    Args:
        lengths: of the rows of each source, int [rows]; row numbers go on from one source to the next.
        rates: share of the ids for each source; any positive scale.
        capacity: ids in a pack. Longer rows are left out: cut codes would teach broken media.
        seed: of all orders.

    Attributes:
        left_out: rows longer than `capacity`, by source.

    Raises:
        ValueError: names do not match, a rate is not positive, a source has no row that fits.
    """

    def __init__(self, lengths: dict[str, np.ndarray], rates: dict[str, float], capacity: int, seed: int):
        if set(lengths) != set(rates):
            raise ValueError(f"Mixture: rates for {sorted(rates)}, rows for {sorted(lengths)}; need one rate each.")
        wrong = {n: rate for n, rate in rates.items() if not (isinstance(rate, Real) and 0 < rate < float("inf"))}
        if wrong or not rates:
            raise ValueError(f"Mixture: rates must be positive numbers, got {wrong or 'none at all'}.")
        self.capacity, self.seed = capacity, seed
        self.lengths = np.concatenate([np.asarray(lengths[name], dtype=np.int64) for name in rates])
        self.rates = list(rates.values())
        self.rows, self.left_out, first = [], {}, 0
        for name in rates:
            fits = np.flatnonzero((lengths[name] > 0) & (lengths[name] <= capacity))
            self.left_out[name] = len(lengths[name]) - len(fits)
            if not len(fits):
                raise ValueError(
                    f"Mixture: no row of {name!r} fits into {capacity} ids (it has {len(lengths[name])} rows). Raise "
                    "max_length, or make shorter rows."
                )
            self.rows.append(fits + first)
            first += len(lengths[name])
        self._restart()

    def __getitem__(self, index: int) -> list[int]:
        """Row numbers of pack `index`. Asking in rising order is cheap, going back starts the plan again."""
        if index < self.first:
            self._restart()
        while index >= self.first + len(self.packs):
            self._next_window()
        return self.packs[index - self.first]

    def waste(self, packs: int) -> float:
        """Share of the positions of the first `packs` packs that hold no id."""
        used = sum(int(self.lengths[self[i]].sum()) for i in range(packs))
        return 1 - used / (packs * self.capacity)

    def packs_per_pass(self) -> int:
        """About how many packs hold as many ids as all rows together."""
        return max(1, round(sum(self.lengths[rows].sum() for rows in self.rows) / self.capacity))

    def _restart(self):
        self.first, self.packs, self.window = 0, [], 0  # of the current window
        self.epochs = [-1] * len(self.rows)
        self.left = [[] for _ in self.rows]  # of the current epoch of each source, last first
        self.queue = [(0.0, source) for source in range(len(self.rows))]  # (ids drawn / rate, source)

    def _next_row(self, source: int) -> int:
        if not self.left[source]:
            self.epochs[source] += 1
            rng = np.random.default_rng([self.seed, source, self.epochs[source]])
            self.left[source] = rng.permutation(self.rows[source]).tolist()
        return self.left[source].pop()

    def _next_window(self):
        drawn, ids = [], 0
        while ids < WINDOW * self.capacity:
            used, source = self.queue[0]
            row = self._next_row(source)
            length = int(self.lengths[row])
            heapq.heapreplace(self.queue, (used + length / self.rates[source], source))
            drawn.append(row)
            ids += length
        packs = best_fit_decreasing(self.lengths[drawn], self.capacity)
        self.first += len(self.packs)
        # Best fit puts long rows together and short ones together: packs in a new order, and rows in each.
        rng = np.random.default_rng([self.seed, len(self.rows), self.window])
        self.packs = [[drawn[place] for place in rng.permutation(packs[i])] for i in rng.permutation(len(packs))]
        self.window += 1
