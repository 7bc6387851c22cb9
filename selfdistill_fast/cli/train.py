"""``selfdistill-fast train``: chains of self-distilled networks (Section 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill_fast.cli import console, report
from selfdistill_fast.cli.options import parse_alpha

__all__ = ["train"]


def train(
    out: Annotated[
        Path,
        typer.Option(help="Directory of the run; killed and started again, it continues there."),
    ],
    model: Annotated[str, typer.Option(help="cnn, resnet18, resnet34 or resnet50.")] = "cnn",
    data: Annotated[
        str,
        typer.Option(
            help="digits (scikit-learn's), cifar10 (torchvision's, downloaded) or the path of a "
            "tree train/CLASS/*.jpg and val/CLASS/*.jpg (or test/).",
            metavar="digits|cifar10|PATH",
        ),
    ] = "digits",
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of the ground truth: 'optimal' (α̂, step by step), one number, or numbers "
            "for the steps 2, 3, … separated by commas. Repeat for several chains, which share "
            "their first fit. [default: optimal]"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs of each fit.", min=1)] = 75,
    seeds: Annotated[
        str, typer.Option(help="How many seeds (0, 1, …), or the seeds separated by commas.")
    ] = "1",
    batch_size: Annotated[int, typer.Option(help="Rows of a batch, in each process.", min=1)] = 128,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    lam: Annotated[float, typer.Option(help="λ of eq. (18): weight decay of λ/n.")] = 1e-4,
    clip: Annotated[bool, typer.Option("--clip", help="Restrict α̂ to [0, 1].")] = False,
    teacher: Annotated[
        str,
        typer.Option(
            help="augmented: the teacher sees the augmented batch; cached: its outputs on the "
            "original images."
        ),
    ] = "augmented",
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment", help="Random crops and flips. [default: for colour images]"
        ),
    ] = None,
    data_root: Annotated[Path, typer.Option(help="Location of cifar10.")] = Path("data"),
    n_train: Annotated[
        int | None, typer.Option(help="Use only this many training images.", min=1)
    ] = None,
    n_val: Annotated[
        int | None, typer.Option(help="Use only this many validation images.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="[default: a GPU if there is one]")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, float64 or bf16. [default: bf16 on a GPU, else float32]"),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            help="torch.compile the networks: default, reduce-overhead (CUDA graphs) or "
            "max-autotune.",
            metavar="MODE",
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Bit-identical results on the same GPU.")
    ] = False,
) -> None:
    """Train chains of self-distilled networks (Section 5); needs the extra 'torch'.

    Each step t ≥ 2 of a chain with --alpha optimal fits a student with α = 0, estimates α̂ from
    its predictions on the validation set by eq. (16), and fits the step itself with it. Every
    epoch is saved: after a kill, the same command continues. More --alpha, --seeds and --steps
    may be added to a run later. Several GPUs: torchrun -m selfdistill_fast train …
    """
    chains = [parse_alpha(text, steps) for text in alpha or ["optimal"]]
    if "joint" in chains:
        raise console.InputError(
            "--alpha joint has no meaning for networks; 'optimal' estimates each step's"
        )
    from selfdistill_fast.trainer import experiment
    from selfdistill_fast.trainer.display import Display

    display = Display(console.err())
    try:
        with display:
            experiment.run(
                out,
                model=model,
                data=data,
                alphas=chains,
                n_steps=steps,
                seeds=_parse_seeds(seeds),
                root=data_root,
                n_train=n_train,
                n_val=n_val,
                augment=augment,
                callbacks=[display],
                epochs=epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                lr=lr,
                lam=lam,
                clip=clip,
                teacher=teacher,
                device=device,
                precision=precision,
                compile=True if compile == "default" else compile or False,
                deterministic=deterministic,
            )
    except KeyboardInterrupt:
        console.say("interrupted; the same command continues after the last whole epoch", "yellow")
        raise typer.Exit(130) from None
    except (FloatingPointError, RuntimeError) as error:  # the latter are torch's own
        raise ValueError(str(error)) from error
    if display.speaks:
        report.print_chains(experiment.accuracies([out]))
        console.say(f"run saved in {out}; 'selfdistill-fast train-figure {out}' draws it")


def _parse_seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or ("," not in text and numbers[0] < 1):
        raise console.InputError(
            f"--seeds must be a count, or seeds separated by commas; got {text!r}"
        )
    return numbers if "," in text else list(range(numbers[0]))
