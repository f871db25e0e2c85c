"""Work ahead of its consumer: how much of it may wait."""

import pytest

from conftest import set_module


@pytest.mark.parametrize("sizes, most", [
    ([1] * 20, 4), ([30] * 9, 2), ([1, 1, 90, 1, 1], 2), ([200] * 5, 0), ([60, 1, 60, 60, 1], 1)])
def test_what_waits_is_bounded_by_its_pixels_too(kernel, monkeypatch, sizes, most):
    set_module(kernel, monkeypatch, "PIXELS_AHEAD", 60)
    taken, waiting = [], []

    def items():
        for item in enumerate(sizes):
            taken.append(item)
            yield item

    for count, item in enumerate(kernel.mapped_ahead(
            lambda item: item, items(), pixels=lambda item: item[1]), 1):
        assert item == (count - 1, sizes[count - 1])
        waiting.append(taken[count:])
    assert len(taken) == len(sizes) and max(map(len, waiting)) == most
    assert all(sum(size for _, size in each[:-1]) <= 60 for each in waiting)
