"""Prepared rows on disk: flat arrays that a reader maps into memory and a writer only ever appends to.

input_ids.npy   int32 [total]     the rows' tokens, one after the other
loss_mask.npy   uint8 [total]     1 where a token bears loss
offsets.npy     int64 [rows + 1]  where each row begins, and the total at the end
row_ids.npy     uint64 [rows]     what a row is known by, however the run is prepared; not in older samples
"""

from pathlib import Path
from types import TracebackType

import numpy as np

from spec.errors import BadInput

ROW_IDS = "row_ids.npy"
TOKENS = "input_ids.npy"
FILES = (TOKENS, "loss_mask.npy", "offsets.npy", ROW_IDS)


class Samples:
    """The rows in a folder, memory-mapped: opening costs nothing, and processes on one machine share the pages."""

    def __init__(
        self, input_ids: np.ndarray, loss_mask: np.ndarray, offsets: np.ndarray, row_ids: np.ndarray | None = None
    ):
        self.input_ids = input_ids  # [total] int32
        self.loss_mask = loss_mask  # [total] uint8
        self.offsets = offsets  # [rows + 1] int64
        self.row_ids = row_ids  # [rows] uint64, or None
        self.lengths = np.diff(offsets)  # [rows] int64, tokens of each row

    @classmethod
    def open(cls, folder: Path) -> "Samples":
        """Raises `BadInput` where there are none, or where the arrays do not belong together."""
        names = [name for name in FILES if name != ROW_IDS or (folder / name).exists()]
        try:
            arrays = [np.load(folder / name, mmap_mode="r") for name in names]
        except (FileNotFoundError, EOFError, ValueError) as error:
            raise BadInput(f"{folder}: no prepared samples ({error}); run tools/prepare_data.py") from error
        samples = cls(*arrays)
        rows = len(samples) if samples.row_ids is None else len(samples.row_ids)
        if not (len(samples.input_ids) == len(samples.loss_mask) == samples.offsets[-1] and len(samples) == rows):
            raise BadInput(f"{folder}: arrays of different lengths; run tools/prepare_data.py --overwrite")
        return samples

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of a row's (input_ids [T] int32, loss_mask [T] uint8), read from disk when touched."""
        start, end = self.offsets[row], self.offsets[row + 1]
        return self.input_ids[start:end], self.loss_mask[start:end]


class SamplesWriter:
    """Writes `Samples` row by row, whatever their number, in constant memory. A context manager."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._ids = _GrowingArray(folder / FILES[0], np.int32)
        self._mask = _GrowingArray(folder / FILES[1], np.uint8)
        self._offsets = _GrowingArray(folder / FILES[2], np.int64)
        self._offsets.append(np.zeros(1, np.int64))
        self._row_ids = _GrowingArray(folder / ROW_IDS, np.uint64)
        self.tokens = 0
        self.rows = 0

    def append(self, input_ids: np.ndarray, loss_mask: np.ndarray, lengths: np.ndarray, row_ids: np.ndarray) -> None:
        """Some rows at once: tokens [total] and masks [total] one after the other, lengths [rows] and ids [rows]."""
        self._ids.append(input_ids)
        self._mask.append(loss_mask)
        self._offsets.append(self.tokens + np.cumsum(lengths, dtype=np.int64))
        self._row_ids.append(row_ids)
        self.tokens += len(input_ids)
        self.rows += len(lengths)

    def __enter__(self) -> "SamplesWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in (self._ids, self._mask, self._offsets, self._row_ids):
            array.close()


class _GrowingArray:
    """A one-dimensional .npy file of a length that is known only at the end.

    NumPy leaves room in the header for a first axis of up to 20 digits, so it can be written again in place.
    """

    def __init__(self, path: Path, dtype: type[np.generic]):
        path.unlink(missing_ok=True)  # a reader that has the old one mapped keeps it
        self._file = open(path, "wb")  # noqa: SIM115
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, described)
