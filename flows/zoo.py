"""`onnx-audit zoo`: victims to try purifiers on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.errors import BadInput

zoo = typer.Typer(no_args_is_help=True, help="Lay out the models with known backdoors that ship, train others, and list them.")
Folder = Annotated[Path, typer.Option("--zoo", metavar="DIR", help="Where the victims lie, each in a folder of its own.")]


Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The folder of data sets: cifar10.npz, mnist.npz, gtsrb/.", show_default=False)]


@zoo.command()
def unpack(data: Data, zoo: Folder = Path("zoo")) -> None:
    """Lay out the victims that ship, one an attack on CIFAR-10, ready for `onnx-audit bench purify` and `onnx-audit run`."""
    from models import zoo as victims

    try:
        victims.unpack(zoo, data)
    except BadInput as error:
        typer.echo(f"onnx-audit: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    _show(zoo)


@zoo.command()
def build(
    data: Data,
    zoo: Folder = Path("zoo"),
    attack: Annotated[list[str] | None, typer.Option("--attack", help="badnets, wanet, …; may be given again. Default: all.", show_default=False)] = None,
    rate: Annotated[list[float] | None, typer.Option("--rate", help="Share of the training images; may be given again. Default: 0.05.")] = None,
    network: Annotated[list[str] | None, typer.Option("--network", help="vgg, cnn, resnet18, resnet18-16, convnext; may be given again. Default: vgg.")] = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", help="cifar10, mnist, gtsrb; may be given again. Default: cifar10.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many of each.")] = 1,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Default: as many as the network needs.", show_default=False)] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device")] = "cpu",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a core, and one on CUDA.", show_default=False)] = None,
) -> None:
    """Train the victims that are missing, and a clean twin of each network; a killed build goes on from there.

    Each is a folder with model.onnx, audit.yaml with its trigger, and card.json with what it measures on all test images.
    """
    from models import zoo as victims
    from models.attacks import ATTACKS

    try:
        recipes = victims.recipes(
            attacks=attack or list(ATTACKS),
            rates=rate or [0.05],
            networks=network or ["vgg"],
            datasets=dataset or ["cifar10"],
            seeds=range(seeds),
            epochs=epochs,
        )
        victims.build(recipes, zoo, data, device=device, workers=workers, listener=lambda line: typer.echo(line, err=True))
    except BadInput as error:
        typer.echo(f"onnx-audit: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    _show(zoo)


@zoo.command("list")
def list_(zoo: Folder = Path("zoo")) -> None:
    """What there is, and what it measures."""
    _show(zoo)


def _show(folder: Path) -> None:
    from models.zoo import cards, figures

    found = list(cards(folder))
    width = max((len(name) for name, _ in found), default=0)
    for name, card in found:
        typer.echo(f"{name:{width}}  {figures(card)}")
    typer.echo(f"{len(found)} in {folder}", err=True)
