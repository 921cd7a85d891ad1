"""Inputs for the program, and its outputs compared; standard library only.

usage: logits.py noise MODEL.safetensors OUT    two images of noise in the model's size, as the tensor `input`
       logits.py compare WANT GOT TOLERANCE     exit code 1 if logits differ by more than a part of the largest
"""

import array
import json
import math
import random
import struct
import sys


def read(path):
    """The header of a safetensors file, and its values."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), file.read()


def noise(model, out):
    size = json.loads(read(model)[0]["__metadata__"]["input_size"])
    shape = [2, *size]
    generator = random.Random(0)
    values = array.array("f", (generator.gauss(0, 1) for _ in range(math.prod(shape))))
    header = json.dumps({"input": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(values)]}}).encode()
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + values.tobytes())


def compare(want, got, tolerance):
    want, got = (array.array("f", read(path)[1]) for path in (want, got))
    if not all(map(math.isfinite, [*want, *got])):
        sys.exit("expected finite logits")
    difference = max(abs(a - b) for a, b in zip(want, got, strict=True)) / max(map(abs, want))
    print(f"difference {difference:.1e} of the largest logit, at most {tolerance}")
    sys.exit(difference > float(tolerance))


{"noise": noise, "compare": compare}[sys.argv[1]](*sys.argv[2:])
