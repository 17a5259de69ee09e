"""`intrinsic-lora evaluate`: score predictions against ground truth."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .checks import writable
from .progress import loading, printable, say


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PRED_DIR",
            exists=True,
            file_okay=False,
            help="Folder of predictions, as written by extract --format npz.",
        ),
    ],
    ground_truth: Annotated[
        Path,
        typer.Argument(metavar="GT_DIR", exists=True, file_okay=False, help="Folder of ground truth as .npz files."),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            dir_okay=False,
            help="Write the summary and the metrics of every image to a JSON file.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Write an HTML report: worst, median and best cases with error maps, and metric histograms.",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of the photos shown in the report; matched by name.",
            show_default="GT_DIR",
        ),
    ] = None,
    per_image: Annotated[bool, typer.Option("--per-image", help="Also print a table for every image.")] = False,
) -> None:
    """Score predicted maps against ground truth.

    Files are matched by name; `0003_rgb.npz` matches `0003.npz`. Each holds any of `normals` (H, W, 3), `depth`
    (H, W), `albedo` (H, W, 3) and `shading` (H, W, C). Ground truth may also hold `mask` (H, W), which selects the
    pixels that count, and `depth_metric` (H, W), which is used in place of `depth`. Metrics are computed per image;
    the table shows the mean over images. Any other map in [0, 1] that both files hold is scored without alignment:
    mae, rmse, ssim and, with one channel, iou above 0.5.

    Angles are in degrees; under_N is the share of pixels within N degrees. Depth is first aligned to the ground truth
    in scale and shift. si_rmse, lmse and ssim are invariant to scale. confidence_spearman is the rank correlation of
    the confidence map and the error: 1 = perfect, 0 = none.

    **Example**

    - `intrinsic-lora evaluate maps scenes --json scores.json --report report.html`
    """
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{report} must end in .html.", param_hint="'--report'")
    writable(report, "--report")
    writable(json_file, "--json")

    with loading():
        from ..intrinsics.pictures import write_json
        from ..train.scoring.folders import evaluate_folders
        from ..train.scoring.report import write_report

    result = evaluate_folders(predictions, ground_truth)
    console = Console()
    if per_image:
        for stem, scores in result["images"].items():
            console.print(_table(stem, scores))
    console.print(_table("Mean over images", result["summary"]))
    for side, stems in result["unmatched"].items():
        if stems:
            shown = ", ".join(stems[:8]) + (" ..." if len(stems) > 8 else "")
            say(f"{len(stems)} without a match in {side.replace('_', ' ')}: {shown}.", err=True)
    if json_file is not None:
        write_json(json_file, _without_nan(result))
        say(f"Wrote {json_file}.")
    if report is not None:
        write_report(report, result, predictions, ground_truth, photos)
        say(f"Wrote {report}.")


def _table(title: str, scores: dict[str, dict[str, float]]) -> Table:
    """Build a table with one column per intrinsic and one row per metric, which fits a narrow terminal."""
    from ..train.scoring.report import figure

    # Names from files may contain markup.
    table = Table(
        "",
        *(escape(printable(name)) for name in scores),
        title=escape(printable(title)),
        title_justify="left",
        title_style="bold",
    )
    for metric in dict.fromkeys(metric for column in scores.values() for metric in column):
        table.add_row(metric, *(figure(column.get(metric, math.nan)) for column in scores.values()))
    return table


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN: an undefined metric becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
