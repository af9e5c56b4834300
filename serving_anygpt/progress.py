"""Progress on standard error, for what takes longer than a second; standard output stays for results."""

import sys
import time
from contextlib import contextmanager

import transformers
from tqdm import tqdm
from transformers import StoppingCriteria


def only_ours() -> None:
    """Silences transformers, whose bars and warnings would run through our lines."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class TokenProgress(StoppingCriteria):
    """Counts generated tokens. A stopping criterion that never stops: unlike a streamer it also works with beams."""

    def __init__(self, label: str, prompt_length: int, quiet: bool = False):
        self.prompt_length = prompt_length
        self.bar = tqdm(
            desc=label, unit=" tokens", delay=1.0, mininterval=0.5, leave=False, disable=quiet, file=sys.stderr
        )

    def __call__(self, input_ids, scores, **kwargs):  # the signature transformers calls
        self.bar.update(input_ids.shape[1] - self.prompt_length - self.bar.n)
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()


@contextmanager
def step(label: str, quiet: bool = False):
    """Says what is going on while it goes on, and how long it took."""
    start = time.perf_counter()
    if not quiet:
        print(f"{label} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException:
        if not quiet:
            print(file=sys.stderr)
        raise
    if not quiet:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr)
