import subprocess
import sys

import numpy as np
import pytest

from spec.errors import BadInput
from spec.samples.dataset import Samples, SamplesWriter


def test_rows_come_back_as_they_were_appended(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 1000, n, dtype=np.int32), rng.integers(0, 2, n).astype(np.uint8)) for n in (3, 1, 7, 4)]
    with SamplesWriter(tmp_path) as writer:
        for some, names in ((rows[:2], [9, 8]), (rows[2:3], [7]), (rows[3:], [2**64 - 1])):
            ids, masks = zip(*some, strict=True)
            lengths, names = np.array([len(row) for row in ids]), np.array(names, np.uint64)
            writer.append(np.concatenate(ids), np.concatenate(masks), lengths, names)
    samples = Samples.open(tmp_path)
    assert samples.row_ids.tolist() == [9, 8, 7, 2**64 - 1] and samples.row_ids.dtype == np.uint64
    assert samples.lengths.tolist() == [3, 1, 7, 4]
    assert len(samples) == 4
    for row, (ids, mask) in enumerate(rows):
        assert samples[row][0].tolist() == ids.tolist() and samples[row][0].dtype == np.int32
        assert samples[row][1].tolist() == mask.tolist() and samples[row][1].dtype == np.uint8


def test_rows_are_mapped_and_not_read(tmp_path):
    write(tmp_path, [3, 4])
    ids, mask = Samples.open(tmp_path)[1]
    assert isinstance(ids, np.memmap) and isinstance(mask, np.memmap)


def test_the_files_are_plain_npy(tmp_path):
    write(tmp_path, [3, 4])
    assert np.load(tmp_path / "offsets.npy").tolist() == [0, 3, 7]
    assert np.load(tmp_path / "input_ids.npy").tolist() == list(range(7))


def test_samples_of_before_rows_had_ids_are_read(tmp_path):
    write(tmp_path, [3, 4])
    (tmp_path / "row_ids.npy").unlink()
    samples = Samples.open(tmp_path)
    assert samples.row_ids is None and samples.lengths.tolist() == [3, 4]


def test_no_rows(tmp_path):
    write(tmp_path, [])
    assert len(Samples.open(tmp_path)) == 0


def test_writing_again_leaves_an_open_reader_its_rows(tmp_path):
    write(tmp_path, [3, 4])
    before = Samples.open(tmp_path)
    write(tmp_path, [1])
    assert before[1][0].tolist() == [3, 4, 5, 6]
    assert Samples.open(tmp_path).lengths.tolist() == [1]


def test_samples_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(BadInput, match="no prepared samples"):
        Samples.open(tmp_path)
    write(tmp_path, [3, 4])
    np.save(tmp_path / "loss_mask.npy", np.ones(6, np.uint8))
    with pytest.raises(BadInput, match="arrays of different lengths"):
        Samples.open(tmp_path)
    (tmp_path / "input_ids.npy").write_bytes(b"")
    with pytest.raises(BadInput, match="no prepared samples"):
        Samples.open(tmp_path)


def test_reading_needs_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, spec.samples.dataset; assert 'torch' not in sys.modules"], check=True
    )


def write(folder, lengths):
    with SamplesWriter(folder) as writer:
        names = np.arange(len(lengths), dtype=np.uint64)
        writer.append(np.arange(sum(lengths)), np.ones(sum(lengths)), np.array(lengths, np.int64), names)
