"""`intrinsic-lora evaluate`: predictions against ground truth."""

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
        typer.Argument(metavar="PRED_DIR", exists=True, file_okay=False, help="What extract --format npz wrote."),
    ],
    ground_truth: Annotated[
        Path, typer.Argument(metavar="GT_DIR", exists=True, file_okay=False, help="Ground truth in .npz files.")
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", dir_okay=False, help="Write every image's metrics and the summary."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Write an .html file: worst, median and best cases with error maps, histograms of every metric.",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of the photos, for the report; matched by name.",
            show_default="GT_DIR",
        ),
    ] = None,
    per_image: Annotated[bool, typer.Option("--per-image", help="Print a table for every image too.")] = False,
) -> None:
    """Score predicted maps against ground truth.

    Files are matched by name; `0003_rgb.npz` matches `0003.npz`. Both hold `normals` (H,W,3), `depth` (H,W), `albedo`
    (H,W,3), `shading` (H,W,C), or some of them; ground truth may add `mask` (H,W), where it counts, and `depth_metric`
    (H,W), used for depth. Every metric is computed per image; the table shows the means over images. Any other map
    in [0, 1] that both hold is scored as it stands: mae, rmse, ssim and, with one channel, iou above 0.5.

    Angles are in degrees; under_N is the share of pixels within N degrees. Depth is first fitted to the ground truth
    by scale and shift. si_rmse, lmse and ssim allow any scale. confidence_spearman says how well the confidence map
    ranks the error: 1 = perfectly, 0 = not at all.

    **Example**

    - `intrinsic-lora evaluate maps scenes --json scores.json --report report.html`
    """
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{report} does not end in .html.", param_hint="'--report'")
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
    console.print(_table("mean over images", result["summary"]))
    for side, stems in result["unmatched"].items():
        if stems:
            shown = ", ".join(stems[:8]) + (" ..." if len(stems) > 8 else "")
            say(f"{len(stems)} without a partner in {side.replace('_', ' ')}: {shown}", err=True)
    if json_file is not None:
        write_json(json_file, _without_nan(result))
        say(f"Written: {json_file}")
    if report is not None:
        write_report(report, result, predictions, ground_truth, photos)
        say(f"Written: {report}")


def _table(title: str, scores: dict[str, dict[str, float]]) -> Table:
    """One column per intrinsic, one row per metric: fits a narrow terminal."""
    from ..train.scoring.report import figure

    # Names come from files: escaped, so that none of them is read as markup.
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
    """JSON knows no NaN: a metric that is not defined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
