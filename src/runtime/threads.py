"""Work done ahead of its consumer, in threads."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor


def mapped_ahead(function, items, ahead=4):
    """function(item) of each item, in order, computed by two threads up to `ahead` items early.

    No more than `ahead` results wait at a time, so memory stays flat however many items come.
    """
    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
