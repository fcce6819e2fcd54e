"""`onnx-audit bench`: measure purifiers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from pipeline.errors import BadInput

bench = typer.Typer(no_args_is_help=True, help="Measure methods side by side, on models whose backdoor is known.")
SHIPPED = Path(__file__).parents[1] / "models" / "cifar10_trojan"


@bench.command()
def purify(
    victims: Annotated[
        list[Path] | None, typer.Argument(metavar="VICTIM...", help="Folders with model.onnx and audit.yaml; default: the one that ships.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="awm, awm:paper, fine-pruning, …; may be given again. Default: all.")] = None,
    images: Annotated[
        list[int] | None, typer.Option("--images", help="Calibration images; 1 is one a class. May be given again. Default: 1, 50 and 500.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds; they draw the images and seed the method.")] = 3,
    judges: Annotated[int, typer.Option("--judges", min=50, help="Hold-out images that judge every run.")] = 500,
    rows: Annotated[Path, typer.Option("--rows", metavar="FILE.csv", help="Where rows are kept; a killed run goes on from there.")] = Path(
        "build/bench-purify.csv"
    ),
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE.md", help="Write tables and plots.", show_default=False)] = None,
    depth: Annotated[bool, typer.Option("--depth", help="Also: altered triggers, and re-learning from 5 and 50 poisoned samples.")] = False,
    twin: Annotated[
        list[Path] | None, typer.Option("--twin", metavar="FOLDER", help="A clean network, for what a perfect repair would leave. May be given again.")
    ] = None,
    pruning: Annotated[
        list[Path] | None, typer.Option("--pruning", metavar="VICTIM", help="On the page: Fine-Pruning's curve on this one. May be given again.")
    ] = None,
    pruning_images: Annotated[int, typer.Option("--pruning-images", min=2, help="Calibration images of the curves; all that there are, if fewer.")] = 2500,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device")] = "auto",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a core, and one on CUDA.", show_default=False)] = None,
) -> None:
    """Purify every victim by every method with every number of images and seed, each through the file, and compare.

    The same images for every method.  Rows are written as they are made; the page shows all that FILE.csv holds.
    """
    from models.comparison import Job, Row, compare, name_of
    from models.comparison_page import table, write_page
    from models.rows import load
    from pipeline.config import METHODS

    wanted = [tuple(name.split(":", 1)) if ":" in name else (name, "default") for name in method or METHODS]
    if unknown := [name for name, _ in wanted if name not in METHODS]:
        raise typer.BadParameter(f"there is no method {unknown[0]!r}; there are: {', '.join(METHODS)}", param_hint="--method")
    if unknown := [preset for _, preset in wanted if preset not in ("default", "paper")]:
        raise typer.BadParameter(f"there is no preset {unknown[0]!r}; there are: default, paper", param_hint="--method")
    if lacking := [folder for folder in [*(victims or []), *(twin or [])] if not (folder / "model.onnx").is_file()]:
        raise typer.BadParameter(f"{lacking[0]} holds no model.onnx: a folder as `onnx-audit zoo` makes it is needed", param_hint="VICTIMS, --twin")
    jobs = [
        Job(victim=str(victim.resolve()), method=name, preset=preset, images=size, seed=seed)
        for victim in victims or [SHIPPED]
        for size in images or [1, 50, 500]
        for name, preset in wanted
        for seed in range(seeds)
    ]

    def told(row: Row, done: int, total: int) -> None:
        what = row.error or f"ACC {100 * row.acc:.1f}  ASR {100 * row.asr:.1f}  DER {row.der:.3f}  {row.seconds:.0f} s"
        typer.echo(f"{done}/{total}  {Path(row.victim).name}  {name_of(row)}  {row.images} images  seed {row.seed}: {what}", err=True)

    try:
        found = compare(jobs, rows, judges=judges, device=device, workers=workers, depth=depth, twins=twin or [], listener=told)
    except BadInput as error:
        _refuse(error)
    if page is not None:
        write_page(page, load(Row, rows), **_curves(pruning or [], page, images=pruning_images, judges=judges, device=device))
        typer.echo(page)
    else:
        typer.echo("\n".join(table(found)))


@bench.command()
def detect(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Folders with model.onnx, audit.yaml and card.json, clean ones among them.")],
    images: Annotated[list[int] | None, typer.Option("--images", help="Calibration images; 1 is one a class. May be given again. Default: 100 and 1.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds; they draw the images and seed the search.")] = 1,
    rows: Annotated[Path, typer.Option("--rows", metavar="FILE.csv", help="Where rows are kept; a killed run goes on from there.")] = Path(
        "build/bench-detect.csv"
    ),
    bank: Annotated[
        Path | None, typer.Option("--bank", metavar="FILE.csv", help="Write what was found as a bank, which scores are held against.", show_default=False)
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE.md", help="Write tables and plots.", show_default=False)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device")] = "auto",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a core, and one on CUDA.", show_default=False)] = None,
) -> None:
    """Search every model for triggers nobody told it about, and see which are suspected.

    Scores are held against the bank that ships; with --bank the models given are written as another one.
    """
    from models.detection import Look, Row, search_all
    from models.detection_page import table, write_page
    from models.rows import to_csv
    from pipeline.artifact import atomic_write

    jobs = [Look(model=str(model.resolve()), images=size, seed=seed) for model in models for size in images or [100, 1] for seed in range(seeds)]

    def told(row: Row, done: int, total: int) -> None:
        what = row.error or "  ".join(f"{kind} {one.outlier:.1f}" for kind, one in row.standings.items())
        typer.echo(f"{done}/{total}  {row.model}  {row.images} images  seed {row.seed}: {what}  {row.seconds:.0f} s", err=True)

    try:
        found = search_all(jobs, rows, device=device, workers=workers, listener=told)
    except BadInput as error:
        _refuse(error)
    if bank is not None:
        atomic_write(bank, to_csv(Row, sorted(found, key=lambda row: (row.images, row.data, row.network, row.attack, row.seed, row.model))))
        typer.echo(bank)
    elif page is not None:
        write_page(page, found)
        typer.echo(page)
    else:
        typer.echo("\n".join(table(found)))


def _refuse(error: BadInput) -> NoReturn:
    typer.echo(f"onnx-audit: {error}", err=True)
    raise typer.Exit(error.exit_code) from error


def _curves(victims: list[Path], page: Path, *, images: int, judges: int, device: str) -> dict[str, Any]:
    """What the page says of Fine-Pruning's curve on some victims, each shown the same number of images."""
    from models.pruning_curve import drawn, pruning_curve, section

    if not victims:
        return {}
    curves = [pruning_curve(victim, images=images, judges=judges, seed=0, device=device) for victim in victims]
    return {"more": section(curves, f"{page.stem}/pruning.png"), "files": {"pruning.png": drawn(curves)}}
