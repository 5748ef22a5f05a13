"""The bar that shows how far trainings are."""

from __future__ import annotations

import threading

from tqdm import tqdm

# Its own lock is one of several processes, which lies in /dev/shm. One process has bars here.
tqdm.set_lock(threading.RLock())

# Short enough for 80 columns.
_FORM = "{n_fmt}/{total_fmt} |{bar:10}| {elapsed}<{remaining}{postfix}"


def progress_bar(total: int, done: int = 0) -> tqdm:
    """A bar on a terminal; nothing in a file or a pipe."""
    return tqdm(
        total=total,
        initial=done,
        bar_format=_FORM,
        smoothing=0,
        dynamic_ncols=True,
        disable=None,
    )
