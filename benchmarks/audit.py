"""Measures `clipmill audit` on a million clips and more: drawing a sample, and reading labels.

    python -m benchmarks.audit [--clips 1000000] [--sample 1000] [--folder DIR]

Uses the tables of `benchmarks.catalog`, with an index. Every command runs in a separate process.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.catalog import Measure, make_dataset, measure
from clipmill.schemas.folders import AUDITS

WHERE = "aesthetic >= 5 AND similarity > 0.27"


def fill_in(drawn: Path, labelled: Path) -> None:
    """Answers every third clip with no."""
    with open(drawn, newline="") as source, open(labelled, "w", newline="") as target:
        rows = csv.DictReader(source)
        writer = csv.DictWriter(target, rows.fieldnames or [])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, "label": "yes" if number % 3 else "no"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the dataset is made and kept")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    clipmill = (sys.executable, "-m", "clipmill.jobs.cli")
    with tempfile.TemporaryDirectory(prefix="clipmill-audit-") as temporary:
        dataset = (given.folder or Path(temporary) / "dataset").absolute()
        if not (dataset / "made.json").is_file():
            shutil.rmtree(dataset, ignore_errors=True)
            make_dataset(dataset, given.clips, given.seed)
        shutil.rmtree(dataset / AUDITS, ignore_errors=True)
        measure(Measure("index", "`index`", (*clipmill, "index", str(dataset))))
        drawn, labelled = Path(temporary) / "drawn.csv", Path(temporary) / "labelled.csv"
        command = (*clipmill, "audit", str(dataset), "--name", "bench")
        asked = ("--where", WHERE, "--score", "aesthetic", "--sample", str(given.sample))
        clips = json.loads((dataset / "made.json").read_text())["clips"]
        print(f"| {clips:,} clips, a sample of {given.sample:,} | seconds | processor seconds |")
        print("|---|---|---|")
        draw = Measure("draw", "draw, `--write`", (*command, *asked, "--write", str(drawn)))
        read = Measure("read", "`--labels`", (*command, "--labels", str(labelled)))
        for one in (draw, read):
            if one is read:
                fill_in(drawn, labelled)
            seconds, busy, _, _ = measure(one)
            print(f"| {one.says} | {seconds:.1f} | {busy:.1f} |", flush=True)


if __name__ == "__main__":
    main()
