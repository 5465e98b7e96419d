"""What every benchmark prints: one JSON object a line, and the exit status that says whether all bounds hold."""

import argparse
import json
import sys
from typing import Literal


def parse(description: str, **options: str) -> argparse.Namespace:
    """Parse --quick and options of the benchmark's own: their names, with the help of each."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the same rows on small sizes, within 50 s")
    for name, text in options.items():
        parser.add_argument(f"--{name}", help=text)
    return parser.parse_args()


class Rows:
    """Collect rows; `ratio` is ours over the peer's, or ours itself where there is no peer. Other figures stand beside, unbounded."""

    def __init__(self) -> None:
        self.failed = 0

    def add(self, row: str, *, ours: float, peer: float | None, bound: float, sense: Literal["<=", ">="] = "<=", **beside: float) -> None:
        ratio = ours if peer is None else ours / peer
        holds = ratio <= bound if sense == "<=" else ratio >= bound
        self.failed += not holds
        made = {"row": row, "ours": ours, "peer": peer, "ratio": ratio, "bound": f"{sense} {bound:g}", "holds": holds, **beside}
        print(json.dumps(made), flush=True)

    def end(self) -> None:
        sys.exit(1 if self.failed else 0)
