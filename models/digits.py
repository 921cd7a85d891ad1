"""The digit network, its file format and its data, shared by the scripts beside this file.

The network here and the program's `lenet_bn` builder must agree in parameter names and in order of operations.
"""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

ARCH = "lenet_bn"
MEAN, STD = 0.1307, 0.3081
SIDE = 28
CLASS_NAMES = [str(digit) for digit in range(10)]


class LenetBn(nn.Module):
    """Five 3x3 convolutions with batch norm, two max pools, a global average pool and a classifier.

    Input [N, 1, 28, 28] normalised, output [N, num_classes] raw logits.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        widths = [1, 32, 32, 64, 64, 128]
        for i, (cin, cout) in enumerate(zip(widths, widths[1:]), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(cin, cout, 3, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(cout))
        self.fc = nn.Linear(widths[-1], num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate features [N, 128]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.max_pool2d(x, 2, 2)
        x = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn4(self.conv4(x)))
        x = torch.max_pool2d(x, 2, 2)
        x = torch.relu(self.bn5(self.conv5(x)))
        return x.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(Path(path).read_bytes())
    zero, dtype, rank = struct.unpack(">HBB", raw[:4])
    if zero != 0 or dtype != 8:
        raise ValueError(f"{path}: expected IDX of unsigned bytes, got magic {raw[:4].hex()}")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes unsigned bytes as gzipped IDX; the same array gives the same bytes."""
    if array.dtype != np.uint8:
        raise ValueError(f"{path}: expected unsigned bytes, got {array.dtype}")
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    Path(path).write_bytes(gzip.compress(raw, compresslevel=9, mtime=0))


def load_split(directory: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [N, 1, 28, 28] and labels [N] of `SPLIT-images-idx3-ubyte.gz` and its labels.

    Frames of another size are stretched to 28x28 with Pillow's bilinear (triangle) filter on bytes.
    """
    images = read_idx(Path(directory) / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(Path(directory) / f"{split}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (SIDE, SIDE):
        resize = lambda image: Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images = np.stack([np.asarray(resize(image)) for image in images])
    pixels = torch.from_numpy(images.astype(np.float32) / 255.0)
    return ((pixels - MEAN) / STD).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits [N, num_classes] in the mode (training or evaluation) the model is in."""
    return torch.cat([model(batch) for batch in images.split(250)])


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Per cent of images whose largest logit is the label, with running batch-norm statistics."""
    model.eval()
    return 100.0 * (predict(model, images).argmax(1) == labels).float().mean().item()


def stored_tensors(model: nn.Module) -> dict[str, np.ndarray]:
    """What is written: filters and the classifier matrix as F16, everything one-dimensional as F32."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # only momentum=None uses it
        dtype = np.float16 if tensor.ndim > 1 else np.float32
        tensors[name] = tensor.detach().contiguous().numpy().astype(dtype)
    return tensors


def save_model(path: Path, model: nn.Module, source: str) -> None:
    """Writes safetensors with the metadata the program reads.

    Written by hand because the library keeps the metadata in a hash map, whose order changes from run to run.
    """
    tensors = sorted(stored_tensors(model).items(), key=lambda item: (-item[1].itemsize, item[0]))
    header = {
        "__metadata__": {
            "arch": ARCH,
            "class_names": json.dumps(CLASS_NAMES),
            "crop_pct": "1.0",
            "input_size": json.dumps([1, SIDE, SIDE]),
            "mean": json.dumps([MEAN]),
            "num_classes": str(len(CLASS_NAMES)),
            "source": source,
            "std": json.dumps([STD]),
        }
    }
    offset = 0
    for name, array in tensors:
        dtype = {2: "F16", 4: "F32"}[array.itemsize]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for _, array in tensors)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def load_model(path: Path) -> LenetBn:
    """The stored network in F32, read with the safetensors library as a check of `save_model`."""
    from safetensors.torch import load_file

    model = LenetBn(len(CLASS_NAMES))
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    return model.eval()
