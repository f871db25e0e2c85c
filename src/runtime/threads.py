"""Work done ahead of its consumer, in threads."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

PIXELS_AHEAD = 50_000_000  # of all results that wait


def mapped_ahead(function, items, ahead=4, pixels=lambda item: 0):
    """function(item) of each item, in order, computed by two threads up to `ahead` items early.

    No more than `ahead` results wait at a time, and no more than PIXELS_AHEAD of their pixels(item)
    together: memory stays flat however many items come, and a large one is waited for at once.
    """
    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for item in items:
            waiting.append((pool.submit(function, item), pixels(item)))
            del item  # may be large, and would live on while the next one is made
            while len(waiting) > ahead or sum(count for _, count in waiting) > PIXELS_AHEAD:
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()
