"""Measures a stage whose model comes with `clipmill[signals]`.

    python -m benchmarks.signal_models --stage measure_text [options of the stage's own]

Each stage has a module of its name here, with `main(options)`, which gets the command's other
words. `--stage NAME --help` prints its options.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal_models",
        description=(__doc__ or "").partition("\n")[0],
        add_help=False,
    )
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    stages = sorted(module.name for module in modules if not module.name.startswith("_"))
    parser.add_argument("--stage", required=True, choices=stages)
    given, options = parser.parse_known_args()
    importlib.import_module(f"{__package__}.{given.stage}").main(options)


if __name__ == "__main__":
    main()
