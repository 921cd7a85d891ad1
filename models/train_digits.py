"""Trains the demo's teacher on MNIST alone and writes `digits-mnist.safetensors` beside this file.

    python models/train_digits.py --data DIR

DIR holds the four MNIST files; USPS test files there are measured too. No target image takes part in training,
and the last step's weights are kept: nothing is selected by any test accuracy.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import digits

HERE = Path(__file__).parent
SOURCE = "trained from scratch on MNIST train (60000 images) by models/train_digits.py; MIT OR Apache-2.0"


def train(images: torch.Tensor, labels: torch.Tensor, args: argparse.Namespace) -> digits.LenetBn:
    """SGD with Nesterov momentum and one learning-rate cycle; no augmentation."""
    torch.manual_seed(args.seed)
    model = digits.LenetBn().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    per_epoch = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.epochs * per_epoch, pct_start=0.25)
    order = torch.Generator().manual_seed(args.seed)
    for epoch in range(args.epochs):
        start, total = time.time(), 0.0
        shuffled = torch.randperm(len(images), generator=order)
        for indices in shuffled[: per_epoch * args.batch].split(args.batch):
            loss = F.cross_entropy(model(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch finished epoch={epoch} loss={total / per_epoch:.4f} s={time.time() - start:.0f}", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "digits-mnist.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()

    torch.set_num_threads(1)  # the order of a sum depends on the number of threads
    torch.use_deterministic_algorithms(True)
    trained = train(*digits.load_split(args.data, "mnist-train"), args)
    digits.save_model(args.out, trained, SOURCE)
    stored = digits.load_model(args.out)

    splits = {"mnist-t10k": args.data, "usps-test": args.data, "optdigits": HERE}
    for split, directory in splits.items():
        if not (directory / f"{split}-images-idx3-ubyte.gz").exists():
            print(f"{split}: not in {directory}, not measured")
            continue
        images, labels = digits.load_split(directory, split)
        before, after = digits.accuracy(trained, images, labels), digits.accuracy(stored, images, labels)
        changed = (digits.predict(trained, images).argmax(1) != digits.predict(stored, images).argmax(1)).sum().item()
        print(f"{split} images={len(labels)} accuracy_f32={before:.2f} accuracy_stored={after:.2f} changed={changed}")


if __name__ == "__main__":
    main()
