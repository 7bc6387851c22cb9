"""Section 5 of the paper on CIFAR-10: chains of networks, and how fast they are trained.

Two parts, one record (bench/results/trainer_cifar10.json) and one picture (….png, Figure 5):

* **speed**: images a second of the training passes of step 1 (no teacher) and of a later step
  (the teacher sees the augmented batch), by the trainer and by the usual loop: a DataLoader over
  in-memory PIL images with torchvision's transforms, eager network, the same loss, optimiser,
  batch size and precision, at several numbers of workers;
* **chains**: α = 0, 0.3, 0.6, 0.9 and α̂, with accuracy and time of every fit.

One command::

    python bench/trainer_cifar10.py --data PATH

PATH is a tree train/CLASS/*.jpg, test/CLASS/*.jpg, or a tar archive of one (unpacked below --run);
without it cifar10-jpeg.tar.xz is looked for in SELFDISTILL_DATA and in ../shared/data beside the
checkout. The chains are kept in --run, and the same command continues there after a kill.
``--smoke`` is a ResNet-18 on a few hundred images for a machine without a GPU: it shows that all
runs, and measures nothing but that. ``--table`` prints what is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tarfile
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from selfdistill_fast.plotting import figure_training, save_figure
from selfdistill_fast.trainer import CropFlip, ImageSet, SelfDistillation, experiment, load_cifar10
from selfdistill_fast.trainer.checkpoint import write_json
from selfdistill_fast.trainer.display import Display
from selfdistill_fast.trainer.models import model_factory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
ALPHAS = (0.0, 0.3, 0.6, 0.9, "optimal")
LR = 1e-4  # the paper's
ALPHA = 0.3  # of the timed step with a teacher


# ------------------------------------------------------------------ data
def tree(given: str | None, run: Path) -> Path:
    """The directory that holds train/ and test/."""
    if given is None:
        folder = Path(os.environ.get("SELFDISTILL_DATA", ROOT.parent / "shared" / "data"))
        given = str(folder / "cifar10-jpeg.tar.xz")
    path = Path(given)
    if path.is_dir():
        return path
    if not path.exists():
        raise SystemExit(f"no CIFAR-10 in {path}: give --data, a tree or an archive of one")
    target = run / "cifar10"
    if not (target / "complete").exists():
        print(f"unpacking {path}", flush=True)
        with tarfile.open(path) as archive:
            archive.extractall(target, filter="data")
        (target / "complete").touch()
    return next(p.parent for p in sorted(target.rglob("train")) if p.is_dir())


# ------------------------------------------------------------------ the usual loop
class Pictures(Dataset):
    """As torchvision's CIFAR10: arrays in memory, a PIL image and its transforms for each row."""

    def __init__(self, data: ImageSet) -> None:
        self.images, self.labels = data.images.numpy(), data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def usual_loop(data, model, *, workers, teacher, batch_size, device, precision, epochs, lam):
    """Images a second of each epoch."""
    loader = DataLoader(
        Pictures(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    torch.manual_seed(0)
    net = model().to(device)
    guide = model().to(device).eval() if teacher else None
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, weight_decay=lam / len(data))
    speeds = []
    for _ in range(epochs):
        net.train()
        begun = time.perf_counter()
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            target = torch.nn.functional.one_hot(y, 10).float()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                out = net(x)
                if guide is not None:
                    with torch.no_grad():
                        soft = guide(x)
            f = out.float().softmax(1)
            loss = 0.5 * (f - target).square().sum(1)
            if guide is not None:
                other = 0.5 * (f - soft.float().softmax(1)).square().sum(1)
                loss = ALPHA * loss + (1 - ALPHA) * other
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        speeds.append(len(data) / (time.perf_counter() - begun))
    return speeds


def ours(data, model, *, compiled, batch_size, device, precision, epochs, lam):
    """Images a second of each epoch of step 1 and of step 2."""
    chain = SelfDistillation(
        model,
        alpha=ALPHA,
        n_steps=2,
        epochs=epochs,
        batch_size=batch_size,
        lr=LR,
        lam=lam,
        precision=precision,
        augment=CropFlip(),
        device=device,
        compile=compiled,
    ).fit(data)
    return [[row["images_per_second"] for row in fit.history] for fit in chain.steps_]


def speeds(train, args, device, precision):
    """Rows of the speed table. The first epoch of everything warms up and is not counted."""
    model = model_factory(args.model, 10)
    rows = []
    for batch_size in args.batch_sizes:
        n = max(batch_size * args.batches, args.images) // batch_size * batch_size
        data = train.take(torch.arange(n))
        common = {"batch_size": batch_size, "images": n}

        def add(who, speeds_1, speeds_2, common=common, **more):
            row = {"who": who, **common, **more}
            for name, values in (("step 1", speeds_1), ("with teacher", speeds_2)):
                row[name] = median(values[1:])
            rows.append(row)
            print(json.dumps(row), flush=True)

        shared = {
            "batch_size": batch_size,
            "device": device,
            "precision": precision,
            "epochs": args.repeats,
            "lam": args.lam,
        }
        for mode in [False] if device.type == "cpu" else [False, "reduce-overhead"]:
            try:
                both = ours(data, model, compiled=mode, **shared)
            except Exception as error:  # torch.compile needs a compiler of its own
                print(f"compile={mode}: {type(error).__name__}: {error}"[:300], flush=True)
                continue
            add("trainer", *both, compile=mode or "no")
        for workers in args.workers:
            both = [
                usual_loop(data, model, workers=workers, teacher=teacher, **shared)
                for teacher in (False, True)
            ]
            add("DataLoader + PIL", *both, workers=workers)
    return rows


# ------------------------------------------------------------------ chains
def chains(root, args, device, precision):
    """Table of every step of every chain."""
    from rich.console import Console

    display = Display(Console(stderr=True, highlight=False))
    out = args.run / f"{args.model}-{args.epochs}-epochs"
    with display:
        experiment.run(
            out,
            model=args.model,
            data=str(root),
            alphas=ALPHAS,
            n_steps=args.steps,
            seeds=range(args.seeds),
            n_train=args.n_train,
            n_val=args.n_val,
            callbacks=[display],
            epochs=args.epochs,
            batch_size=args.batch_size,
            lr=LR,
            lam=args.lam,
            precision=precision,
            device=device,
            compile=args.compile or False,
        )
    table = experiment.accuracies([out])
    title = f"{args.model} on CIFAR-10 (JPEG), {args.epochs} epoch(s) a fit"
    save_figure(figure_training(table, title=title), args.results.with_suffix(".png"))
    rows = []
    for file in sorted(out.glob("seed-*/alpha-*/chain.json")):
        chain = json.loads(file.read_text(encoding="utf-8"))
        rows += [{"chain": str(chain["alpha"]), "seed": chain["seed"], **s} for s in chain["steps"]]
    return rows


# ------------------------------------------------------------------ report
def show(results):
    print(f"\n{results['machine']}\n{results['setting']}\n")
    print(
        "| loop | batch | workers / compile | img/s, step 1 | img/s, with teacher | × usual loop |"
    )
    print("|---|---|---|---|---|---|")
    for row in results["speed"]:
        usual = [
            r["with teacher"]
            for r in results["speed"]
            if "workers" in r and r["batch_size"] == row["batch_size"]
        ]
        ratio = f"{row['with teacher'] / max(usual):.1f}" if "compile" in row and usual else ""
        how = row.get("workers", row.get("compile"))
        print(
            f"| {row['who']} | {row['batch_size']} | {how} | {row['step 1']:.0f} "
            f"| {row['with teacher']:.0f} | {ratio} |"
        )
    print("\n× is the ratio to the usual loop at its best number of workers, with teacher.\n")
    print("| chain | seed | step | α | training accuracy | validation accuracy | s a fit | img/s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in results["chains"]:
        alpha = "–" if row["alpha"] is None else f"{row['alpha']:.3f}"
        print(
            f"| {row['chain']} | {row['seed']} | {row['step']} | {alpha} "
            f"| {row['train_accuracy']:.4f} | {row['val_accuracy']:.4f} | {row['seconds']:.1f} "
            f"| {row['images_per_second']:.0f} |"
        )


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="tree of images, or an archive of one")
    parser.add_argument("--run", type=Path, default=ROOT / "build" / "trainer_cifar10")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=512, help="of the chains")
    parser.add_argument("--lam", type=float, default=1e-4)
    parser.add_argument("--compile", default="", help="of the chains: a mode of torch.compile")
    parser.add_argument("--batch-sizes", type=numbers, default=[16, 512], help="of the speed")
    parser.add_argument("--batches", type=int, default=50, help="at least, of an epoch of speed")
    parser.add_argument("--images", type=int, default=8000, help="at least, of an epoch of speed")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of the speed")
    parser.add_argument("--workers", type=numbers, default=[0, 4, 16], help="of the usual loop")
    parser.add_argument("--only", choices=["speed", "chains"])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.n_train = args.n_val = None
    args.results = RESULTS / "trainer_cifar10.json"
    if args.smoke:
        args.results = RESULTS / "trainer_cifar10_smoke.json"
        args.model, args.n_train, args.n_val = "resnet18", 300, 200
        args.epochs, args.steps, args.seeds, args.batch_size = 1, 2, 1, 50
        args.batch_sizes, args.workers = [64], [0, 2]
        args.batches, args.images, args.repeats = 3, 0, 2
        args.run = args.run.with_name("trainer_cifar10_smoke")
    stored = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    if args.table:
        show(stored)
        return
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "float32"
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else platform.processor() or "CPU"
    results = {
        "machine": f"{name}, {os.cpu_count()} cores, torch {torch.__version__}",
        "setting": f"{args.model}, {precision}, Adam lr {LR:g}, λ {args.lam:g}, "
        f"chains: {args.n_train or 50000} images, batch {args.batch_size}, {args.epochs} epochs",
        "smoke": args.smoke,
        "speed": stored.get("speed", []),
        "chains": stored.get("chains", []),
    }
    args.run.mkdir(parents=True, exist_ok=True)
    root = tree(args.data, args.run)
    if args.only != "chains":
        results["speed"] = speeds(load_cifar10(root, "folder")[0], args, device, precision)
        write_json(args.results, results)
    if args.only != "speed":
        results["chains"] = chains(root, args, device, precision)
        write_json(args.results, results)
    show(results)


if __name__ == "__main__":
    main()
