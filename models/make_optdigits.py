"""Writes the demo's target images, the 1797 test digits of UCI optdigits, as IDX beside this file.

    python models/make_optdigits.py

The 8x8 counts 0..16 become bytes 0..255; the frame stays 8x8, so that preprocessing stretches it to the teacher's 28x28.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import digits

HERE = Path(__file__).parent


def main() -> None:
    bundle = load_digits()
    counts = bundle.images
    if counts.shape != (1797, 8, 8) or counts.min() != 0 or counts.max() != 16:
        raise ValueError(f"expected 1797 frames of 8x8 counts 0..16, got {counts.shape} {counts.min()}..{counts.max()}")
    digits.write_idx(HERE / "optdigits-images-idx3-ubyte.gz", np.rint(counts * 255 / 16).astype(np.uint8))
    digits.write_idx(HERE / "optdigits-labels-idx1-ubyte.gz", bundle.target.astype(np.uint8))


if __name__ == "__main__":
    main()
