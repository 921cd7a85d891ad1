"""Adapts the teacher to optdigits in PyTorch, source-free, as a reference for what the program should reach.

    python models/check_adaptation.py --steps 400 --lr 0.01 --seed 0

Target labels are read for the printed accuracies only. Every run keeps its last step.

Source: SHOT (Liang, Hu, Feng 2020, arXiv:2002.08546) with confidence weights on the entropy and pseudo-label terms.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import digits

HERE = Path(__file__).parent


@torch.no_grad()
def target_statistics(model: nn.Module, images: torch.Tensor, batch: int = 256) -> nn.Module:
    """Replaces every running mean and variance by the cumulative average over one pass."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for indices in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(batch):
        model(images[indices])
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@torch.no_grad()
def label_free_signals(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Mean entropy, mutual information H(mean p) - mean H(p) and the largest predicted class share, in evaluation mode."""
    model.eval()
    probs = digits.predict(model, images).softmax(1)
    mean_entropy, mean_probs = entropy(probs).mean(), probs.mean(0)
    shares = torch.bincount(probs.argmax(1), minlength=probs.shape[1]) / len(probs)
    return {
        "entropy": mean_entropy.item(),
        "mutual_information": (entropy(mean_probs) - mean_entropy).item(),
        "largest_share": shares.max().item(),
    }


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """Nats along the last dimension."""
    return -(probs * probs.clamp_min(1e-8).log()).sum(-1)


@torch.no_grad()
def pseudo_labels(model: digits.LenetBn, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels by nearest class centroid (cosine) and the weight of each, with batch statistics.

    The running statistics are put back: this forward is not a training step.
    """
    saved = copy.deepcopy(model.state_dict())
    model.train()
    features = torch.cat([model.features(batch) for batch in images.split(256)])
    model.load_state_dict(saved)
    probs = model.fc(features).softmax(1)
    features = F.normalize(features, dim=1)
    classes, weights = probs.shape[1], probs
    present = torch.bincount(probs.argmax(1), minlength=classes) > 0
    for _ in range(2):  # soft centroids, then one re-estimation with hard labels
        centroids = F.normalize(weights.T @ features, dim=1)
        similarity = (features @ centroids.T).masked_fill(~present, -2.0)
        labels = similarity.argmax(1)
        weights = F.one_hot(labels, classes).float()
        present = weights.sum(0) > 0
    chosen = probs.gather(1, labels[:, None]).squeeze(1)
    agree = torch.where(probs.argmax(1) == labels, 1.0, 0.5)
    return labels, agree * (chosen > 1.0 / classes)


def shifted(images: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `reach` pixels each way; uncovered pixels are black."""
    if reach == 0:
        return images
    side = images.shape[-1]
    padded = F.pad(images, [reach] * 4, value=-digits.MEAN / digits.STD)
    moves = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves)])


def adapt(model: digits.LenetBn, images: torch.Tensor, args: argparse.Namespace) -> nn.Module:
    """Information maximisation and centroid pseudo labels with a frozen classifier."""
    generator = torch.Generator().manual_seed(args.seed)
    model.fc.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=args.lr, momentum=0.9, nesterov=True, weight_decay=1e-3)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(args.steps):
        if step % max(1, args.steps // args.refreshes) == 0:
            labels, label_weights = pseudo_labels(model, images)
            model.train()
        if len(order) < args.batch:
            order = torch.randperm(len(images), generator=generator)
        indices, order = order[: args.batch], order[args.batch :]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 + 10 * step / args.steps) ** -0.75
        logits = model(shifted(images[indices], args.shift, generator))
        probs = logits.softmax(1)
        entropies = entropy(probs)
        weights = torch.exp(-entropies.detach())
        weights = weights / weights.mean()
        cross_entropy = F.cross_entropy(logits, labels[indices], reduction="none")
        loss = (weights * entropies).mean() - entropy(probs.mean(0))
        loss = loss + args.label_weight * (label_weights[indices] * cross_entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return target_statistics(model, images)


def report(stage: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    signals = " ".join(f"{name}={value:.3f}" for name, value in label_free_signals(model, images).items())
    print(f"{stage} accuracy={digits.accuracy(model, images, labels):.2f} {signals}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "digits-mnist.safetensors")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--shift", type=int, default=1)
    parser.add_argument("--refreshes", type=int, default=8)
    parser.add_argument("--label-weight", type=float, default=0.3)
    parser.add_argument("--skip-statistics", action="store_true", help="start training from the source statistics")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = digits.load_split(HERE, "optdigits")
    model = digits.load_model(args.model)
    print(" ".join(f"{name}={value}" for name, value in vars(args).items() if name != "model"))
    report("source only", model, images, labels)
    if not args.skip_statistics:
        report("target statistics", target_statistics(model, images), images, labels)
    start = time.time()
    adapt(model, images, args)
    report("adapted", model, images, labels)
    print(f"s={time.time() - start:.0f}")


if __name__ == "__main__":
    main()
