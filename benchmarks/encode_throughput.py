"""How fast text becomes ids: python benchmarks/encode_throughput.py.

Prints the median throughput (MB of UTF-8 per second) of `Vocab.build` and `Vocab.encode` on ASCII and on non-ASCII
text, and that of a Python loop over a dictionary for comparison.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from charlm.text.sources import python_docs
from charlm.text.vocab import Vocab


def seconds(task: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `task` in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def loop(text: str, table: dict[str, int]) -> list[int]:
    """Encode one character at a time, as the baseline."""
    return [table[c] for c in text]


def main() -> None:
    """Measure and print the table."""
    docs = python_docs().text.encode("ascii", "ignore").decode() * 40
    print(f"{'text':12}{'MB':>8}{'build MB/s':>14}{'encode':>14}{'dict loop':>14}")
    for name, text in {"ASCII": docs, "non-ASCII": docs.replace("e", "é").replace("the", "ﬀ")}.items():
        vocab = Vocab.build(text)
        table = {c: i for i, c in enumerate(vocab.chars)}
        tasks = (partial(Vocab.build, text), partial(vocab.encode, text), partial(loop, text, table))
        megabytes = len(text.encode()) / 1e6
        print(f"{name:12}{megabytes:8.1f}" + "".join(f"{megabytes / seconds(task):14,.0f}" for task in tasks))


if __name__ == "__main__":
    main()
