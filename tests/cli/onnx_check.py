"""Runs ONNX files with ONNX Runtime.

Says "ready", or "missing: ..." if a module is not there. Then, for each line on stdin, a folder: checks model.onnx in
it, runs it on input.f32, writes logits.f32 and answers with one line of JSON.
"""

import json
import os
import sys

try:
    import numpy
    import onnx
    import onnxruntime
except ImportError as error:
    print(f"missing: {error}", flush=True)
    sys.exit()


def run(folder):
    path = os.path.join(folder, "model.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    (sink,) = session.get_outputs()
    images = numpy.fromfile(os.path.join(folder, "input.f32"), "<f4").reshape([-1, *source.shape[1:]])
    (logits,) = session.run([sink.name], {source.name: images})
    logits.tofile(os.path.join(folder, "logits.f32"))
    return {
        "input": [source.name, source.type, source.shape],
        "output": [sink.name, sink.type, sink.shape],
        "opset": [[s.domain, s.version] for s in model.opset_import],
        "ir_version": model.ir_version,
        "producer": [model.producer_name, model.producer_version],
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "shape": logits.shape,
    }


print("ready", flush=True)
for line in sys.stdin:
    try:
        answer = run(line.rstrip("\n"))
    except Exception as error:  # Whatever it is, the test wants to show it.
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
