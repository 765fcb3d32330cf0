"""What several finished runs spent on labels and what came of it, side by side.

    python experiments/tables/spending.py runs/source_only+bald/seed0 runs/source_only+image_entropy/seed0
    python experiments/tables/spending.py runs/*/seed0 --click_seconds 1.5 --image_seconds 1200

Without a flag of cost every run keeps the price of its own `active.cost`, which must be the same for all; with one all
runs are priced anew, by the defaults and what the flags change.
"""

import argparse
import sys
from dataclasses import fields

from rich.console import Console

from adaptseg.active.costs import LabelCost
from adaptseg.active.spending import spending_table
from adaptseg.errors import AdaptSegError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories")
    for field in fields(LabelCost):
        parser.add_argument(f"--{field.name}", type=float, help=f"see LabelCost (default {field.default})")
    given = vars(parser.parse_args())
    rates = {field.name: given[field.name] for field in fields(LabelCost) if given[field.name] is not None}
    try:
        Console().print(spending_table(given["runs"], LabelCost(**rates) if rates else None))
    except AdaptSegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
