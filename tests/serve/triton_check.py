"""The official Triton client against a running server.

Usage: triton_check.py ADDRESS MODEL. Prints "ok" as its last line, or "missing: MODULE" where a module is.
"""

import sys

try:
    import numpy as np
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException
except ImportError as error:
    print(f"missing: {error.name}")
    sys.exit(0)

address, model = sys.argv[1:]
client = triton.InferenceServerClient(address)

assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
assert client.is_model_ready(model, "1") and not client.is_model_ready(model, "2")
server = client.get_server_metadata()
assert server["name"] == "secateur" and "binary_tensor_data" in server["extensions"], server
metadata = client.get_model_metadata(model)
[wanted], [given] = metadata["inputs"], metadata["outputs"]
assert (wanted["name"], wanted["datatype"], given["name"]) == ("input", "FP32", "logits"), metadata
_, channels, height, width = wanted["shape"]
classes = given["shape"][1]
names = metadata["class_names"]


def infer(values, datatype, binary_input, **output):
    tensor = triton.InferInput("input", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary_input)
    outputs = [triton.InferRequestedOutput("logits", **output)] if output else None
    result = client.infer(model, [tensor], outputs=outputs, request_id="r1")
    assert result.get_response()["id"] == "r1"
    return result.as_numpy("logits")


rng = np.random.default_rng(1)
floats = rng.standard_normal((3, channels, height, width), dtype=np.float32)
reference = infer(floats, "FP32", True)
assert reference.shape == (3, classes) and reference.dtype == np.float32
for binary_input in [True, False]:
    for binary_output in [True, False]:
        got = infer(floats, "FP32", binary_input, binary_data=binary_output)
        assert np.allclose(got, reference, rtol=1e-5, atol=1e-5), (binary_input, binary_output, got, reference)

pixels = rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8)
raw = infer(pixels, "UINT8", True)
assert raw.shape == (2, classes)
assert np.allclose(infer(pixels, "UINT8", False, binary_data=False), raw, rtol=1e-5, atol=1e-5)

for binary_output in [True, False]:
    top = infer(floats, "FP32", True, binary_data=binary_output, class_count=2)
    assert top.shape == (3, 2), top
    for row, logits in zip(top, reference):
        # The client gives bytes for binary tensors and text for JSON.
        best = row[0].decode() if isinstance(row[0], bytes) else row[0]
        value, index, name = best.split(":")
        assert int(index) == int(np.argmax(logits)) and name == names[int(index)], (row, logits)
        assert abs(float(value) - logits.max()) < 1e-3

index = client.get_model_repository_index()
assert index[0]["name"] == model and index[0]["state"] == "READY", index
client.load_model(model)
assert client.is_model_ready(model)
client.unload_model(model)
assert not client.is_model_ready(model) and not client.is_server_ready()
client.load_model(model)
assert client.is_server_ready()

for values, datatype in [(floats[:, :, :1], "FP32"), (np.full_like(floats, np.nan), "FP32")]:
    try:
        infer(values, datatype, True)
    except InferenceServerException as error:
        assert error.status() == "400" and error.message(), error
    else:
        raise AssertionError("expected a refusal")

# Several requests at once, over the client's own pool.
pool = triton.InferenceServerClient(address, concurrency=8)
tensor = triton.InferInput("input", list(floats.shape), "FP32")
tensor.set_data_from_numpy(floats)
for request in [pool.async_infer(model, [tensor]) for _ in range(32)]:
    assert np.allclose(request.get_result().as_numpy("logits"), reference, rtol=1e-5, atol=1e-5)
print("ok")
