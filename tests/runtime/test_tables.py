"""Tables that are written whole or not at all."""

import pandas as pd
import pytest

from src.runtime.tables import write_table


def test_a_full_disk_leaves_the_older_table(tmp_path, monkeypatch):
    """And a run without rows leaves none that an earlier one wrote."""
    path = tmp_path / "metrics.csv"
    write_table(path, [{"epoch": 1}])

    def full(table, part, **options):
        part.write_text("epo")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError):
            write_table(path, [{"epoch": 1}, {"epoch": 2}])
    assert path.read_text() == "epoch\n1\n"
    assert list(tmp_path.iterdir()) == [path]
    write_table(path, [])
    assert not path.exists()
