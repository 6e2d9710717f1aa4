"""The picture of the README: accuracy behind each block, of the two networks that `make demo` trained.

python examples/demo_picture.py runs/demo [--output docs/images]
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path

from stagecost.report.charts import Axis, Series, line_chart
from stagecost.storage import write_atomically

Curve = list[tuple[float, float]]
"""Pairs of a number of blocks and an accuracy."""
RUNS = {"plain training": "plain", "with a stage cost": "stage-cost"}
COLOURS = {"plain training": "muted", "with a stage cost": "accent"}


def accuracies(run: Path) -> list[tuple[float, float]]:
    """Read (k, percent of the validation images that y_k gets right) after the last epoch of a run."""
    with (run / "trajectory.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    last = rows[-1]["epoch"]
    return [(int(row["depth"]), float(row["val_accuracy"])) for row in rows if row["epoch"] == last]


def picture(curves: Mapping[str, list[tuple[float, float]]]) -> str:
    """Draw the curves; returns SVG."""
    series = [Series(name, curve, colour=COLOURS[name]) for name, curve in curves.items()]
    chart = line_chart(
        series,
        x=Axis("blocks in use"),
        y=Axis("validation accuracy (%)", zero=True),
        summary="Validation accuracy over the number of blocks in use, plain and with a stage cost",
    )
    return chart.svg("digits-depth")


def main() -> None:
    """Read both runs and write the picture."""
    parser = argparse.ArgumentParser(description="Draw what the demo trained.")
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    curves = {name: accuracies(options.demo / run) for name, run in RUNS.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "digits-depth.svg"
    write_atomically(file, picture(curves) + "\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
