"""One model quantised by us and by ONNX Runtime on the same pixels, and what that does to its answers."""

import glob
import json
import os
import random
import struct

import numpy
import onnx
from PIL import Image

import onnx_runtime

# Images to calibrate on, and most to compare answers on.
CALIBRATION = 256
HELD_OUT = 512
# Ways in which ONNX Runtime chooses ranges; the first one's model is timed, speed does not depend on it.
METHODS = ["MinMax", "Entropy", "Percentile"]
TYPES = {"uint8": "U8", "float32": "F32"}


def write_tensor(path, name, values):
    header = {name: {"dtype": TYPES[values.dtype.name], "shape": values.shape, "data_offsets": [0, values.nbytes]}}
    head = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head + numpy.ascontiguousarray(values).tobytes())


def read_tensor(path, name):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        return numpy.frombuffer(file.read(end - start), "<f4").reshape(entry["shape"])


def pixels(path, side, crop):
    """The image's centre at the model's size, u8 [H, W, 3]: from here on, both programs only normalise."""
    image = Image.open(path).convert("RGB")
    scale = max(round(side / crop) / min(image.size), side / min(image.size))
    size = [max(side, round(length * scale)) for length in image.size]
    if size != list(image.size):
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in size)
    return numpy.asarray(image.crop((left, top, left + side, top + side)))


class Models:
    """A model as files: `own` calibrated by us, `onnx`, and `qdq` quantised by ONNX Runtime."""

    def __init__(self, name, options, folder, output, secateur):
        self.name, self.folder, self.output, self.secateur = os.path.basename(name), folder, output, secateur
        path = lambda file: os.path.join(folder, file)
        source = [name] if os.path.exists(name) else ["--arch", name, "--size", str(options.size)]
        self.own, self.onnx, self.qdq = path("int8.safetensors"), path("int8.onnx"), path(f"{METHODS[0]}.onnx")
        plain = path("f32.safetensors")
        output(secateur, "export", "--json", *source, "--onnx", self.onnx, "--safetensors", plain)
        calibration, self.held_out = self.load(options.images)
        write_tensor(path("calibration.safetensors"), "images", calibration)
        # Whether it pays is for the reader to judge: no gate.
        output(secateur, "quantize", plain, "--images", path("calibration.safetensors"), "--out", self.own,
               "--min-agreement", "0", "--json")
        for method in METHODS:
            onnx_runtime.quantize(self.onnx, path("folded.onnx"), path(f"{method}.onnx"), self.normalised(calibration), method)

    def load(self, images):
        """Pixels to calibrate on and pixels held out."""
        model = onnx.load(self.onnx)
        self.meta = {entry.key: json.loads(entry.value) for entry in model.metadata_props
                     if entry.key in ("mean", "std", "crop_pct")}
        side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        paths = sorted(p for p in glob.glob(os.path.join(images, "**", "*"), recursive=True) if os.path.isfile(p))
        random.Random(0).shuffle(paths)
        chosen = [pixels(p, side, self.meta["crop_pct"]) for p in paths[: CALIBRATION + HELD_OUT]]
        return numpy.stack(chosen[:CALIBRATION]), numpy.stack(chosen[CALIBRATION:])

    def normalised(self, images):
        mean, std = (numpy.array(self.meta[key], numpy.float32) for key in ("mean", "std"))
        return numpy.ascontiguousarray(((images.astype(numpy.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))

    def our_logits(self, images, precision):
        source, sink = (os.path.join(self.folder, file) for file in ("input.safetensors", "logits.safetensors"))
        write_tensor(source, "input", images)
        self.output(self.secateur, "predict", self.own, "--input", source, "--output", sink, "--precision", precision)
        return read_tensor(sink, "logits")

    def agreement(self):
        """Rows of a table: model, quantiser, images, same class as f32, relative error of the logits."""
        images = self.normalised(self.held_out)
        own, other = self.our_logits(images, "f32"), onnx_runtime.logits(self.onnx, images)
        if numpy.abs(own - other).max() > 1e-3 * numpy.abs(other).max():
            raise SystemExit(f"{self.name}: our f32 logits are not ONNX Runtime's")
        rounded = [("ours", own, self.our_logits(images, "int8"))]
        for method in METHODS:
            path = os.path.join(self.folder, f"{method}.onnx")
            rounded.append((f"ONNX Runtime, {method}", other, onnx_runtime.logits(path, images)))
        return [[self.name, quantiser, str(len(images)), f"{100 * (exact.argmax(1) == got.argmax(1)).mean():.1f} %",
                 f"{numpy.linalg.norm(got - exact) / numpy.linalg.norm(exact):.3f}"] for quantiser, exact, got in rounded]
