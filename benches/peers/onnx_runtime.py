"""ONNX Runtime on the CPU: its latency, its answers, its own static quantisation."""

import json
import sys
import time

import numpy
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

WARM_UPS = 3
# Images at a time, for calibration and answers.
BATCH = 8


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def median_ms(path, threads, runs):
    """Median milliseconds of a request of one image."""
    runtime = session(path, threads)
    (source,) = runtime.get_inputs()
    image = numpy.random.default_rng(0).standard_normal([1, *source.shape[1:]], dtype=numpy.float32)
    times = []
    for _ in range(WARM_UPS + runs):
        start = time.perf_counter()
        runtime.run(None, {source.name: image})
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times[WARM_UPS:])[runs // 2]


def logits(path, images):
    """Logits of normalised images [N, C, H, W]."""
    runtime = session(path, 2)
    (source,) = runtime.get_inputs()
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return numpy.concatenate([runtime.run(None, {source.name: batch})[0] for batch in batches])


class Images(CalibrationDataReader):
    """Normalised images, a batch at a time."""

    def __init__(self, name, images):
        self.batches = iter([{name: images[i : i + BATCH]} for i in range(0, len(images), BATCH)])

    def get_next(self):
        return next(self.batches, None)


def quantize(path, folded, out, images, method):
    """Writes `out`: 8-bit activations and per-channel 8-bit weights, as QDQ; `folded` gets the batch norms folded in."""
    quant_pre_process(path, folded, skip_symbolic_shape=True)
    (source,) = session(folded, 1).get_inputs()
    quantize_static(
        folded,
        out,
        Images(source.name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )


if __name__ == "__main__":
    path, threads, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"median_ms": median_ms(path, threads, runs)}))
