"""Trains the demo's teacher on MNIST alone and writes `digits-mnist.safetensors` beside this file.

    python models/train_digits.py --data DIR
    python models/train_digits.py --data DIR --source usps --epochs 8 --out OTHER/digits-usps.safetensors

DIR holds the four MNIST files, or the four of USPS for `--source usps`; test files of the other set there are measured
too. No target image takes part in training, and the last step's weights are kept. The default of `--blur-sizes` was chosen by the accuracy on optdigits, to give
the demo a gap of the wanted size: README.md lists what was tried.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

import digits

HERE = Path(__file__).parent
ORIGINS = {
    "mnist": "trained from scratch on MNIST train (60000 images) by models/train_digits.py; MIT OR Apache-2.0",
    "usps": "trained from scratch on USPS train (7291 images) by models/train_digits.py; not for distribution",
}


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image scaled by 0.85..1.3 along each axis on its own and shifted by up to 2 pixels; uncovered pixels are black."""
    count, pixel = len(images), 2.0 / digits.SIDE  # the sampling grid spans -1..1
    maps = torch.zeros(count, 2, 3)
    for axis in range(2):
        maps[:, axis, axis] = 1.0 / uniform(count, 0.85, 1.3, generator)
        maps[:, axis, 2] = pixel * uniform(count, -2.0, 2.0, generator)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    black = -digits.MEAN / digits.STD  # the sampler pads with zero
    return F.grid_sample(images - black, grid, align_corners=False) + black


def blur_matrices(sizes: range) -> torch.Tensor:
    """[sizes, 28, 28]: matrix M reduces a column to `size` pixels and stretches it back; M X M' does so to an image X."""

    def resize(rows: int, columns: int) -> torch.Tensor:
        identity = torch.eye(columns)[None, None]
        return F.interpolate(identity, size=(rows, columns), mode="bilinear", antialias=True)[0, 0]

    return torch.stack([resize(digits.SIDE, size) @ resize(size, digits.SIDE) for size in sizes])


def augmentation(args: argparse.Namespace) -> Callable[[torch.Tensor], torch.Tensor]:
    """Random scale and shift of every image and, with probability `args.blur`, a loss of resolution."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    low, high = args.blur_sizes
    matrices = blur_matrices(range(low, high + 1))

    def augment(images: torch.Tensor) -> torch.Tensor:
        images = moved(images, generator)
        chosen = matrices[torch.randint(len(matrices), (len(images),), generator=generator)].unsqueeze(1)
        blurred = torch.rand(len(images), 1, 1, 1, generator=generator) < args.blur
        return torch.where(blurred, chosen @ images @ chosen.transpose(-1, -2), images)

    return augment


def train(images: torch.Tensor, labels: torch.Tensor, args: argparse.Namespace) -> digits.LenetBn:
    """SGD with Nesterov momentum and one learning-rate cycle on augmented images."""
    torch.manual_seed(args.seed)
    model = digits.LenetBn().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    per_epoch = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.epochs * per_epoch, pct_start=0.25)
    order = torch.Generator().manual_seed(args.seed)
    augment = augmentation(args)
    for epoch in range(args.epochs):
        start, total = time.time(), 0.0
        shuffled = torch.randperm(len(images), generator=order)
        for indices in shuffled[: per_epoch * args.batch].split(args.batch):
            loss = F.cross_entropy(model(augment(images[indices])), labels[indices])
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
    parser.add_argument("--source", choices=sorted(ORIGINS), default="mnist")
    parser.add_argument("--out", type=Path, help="default for mnist: the file beside this script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--blur", type=float, default=0.5, help="probability of a loss of resolution")
    parser.add_argument("--blur-sizes", type=int, nargs=2, default=[13, 20], metavar=("LOW", "HIGH"))
    args = parser.parse_args()
    if args.out is None and args.source != "mnist":
        parser.error("--out: expected a file outside the project for a teacher that is not to be distributed")
    out = args.out or HERE / "digits-mnist.safetensors"

    torch.set_num_threads(1)  # the order of a sum depends on the number of threads
    torch.use_deterministic_algorithms(True)
    trained = train(*digits.load_split(args.data, f"{args.source}-train"), args)
    digits.save_model(out, trained, ORIGINS[args.source])
    stored = digits.load_model(out)

    splits = {"mnist-t10k": args.data, "usps-test": args.data, "optdigits": HERE}
    for split, directory in splits.items():
        if not (directory / f"{split}-images-idx3-ubyte.gz").exists():
            print(f"{split}: not in {directory}, not measured")
            continue
        images, labels = digits.load_split(directory, split)
        before, after = (digits.predict(model, images).argmax(1) for model in (trained, stored))
        correct = [100.0 * (predicted == labels).float().mean().item() for predicted in (before, after)]
        changed = (before != after).sum().item()
        print(f"{split} images={len(labels)} accuracy_f32={correct[0]:.2f} accuracy_stored={correct[1]:.2f} changed={changed}")


if __name__ == "__main__":
    main()
