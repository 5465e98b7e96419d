"""EfficientNet-Lite0 on photographs: how often the exported files name the class that the dense network names.

In full, `edgecompress export` runs with its decomposition budget and every crop; --quick exports two TFLite files of the dense network,
calibrated on fewer crops and proved on 64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Rows, parse

from edgecompress import programs
from edgecompress.records import ExportResult, read

RECIPE = programs.REPOSITORY / "examples" / "efficientnet_lite0"
GATE = "0.95"
REFUSED = 5  # some file did not pass the gate; the others are there
FULL = ("--macs-ratio", "0.8")
QUICK = (
    "--macs-ratio",
    "1",
    "--format",
    "tflite",
    "--scheme",
    "fp32",
    "--scheme",
    "int8-static",
    "--samples",
    "64",
    "--verify-samples",
    "64",
)


def main() -> None:
    chosen = QUICK if parse(__doc__).quick else FULL
    rows = Rows()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "edgecompress", "export", str(RECIPE), "--run", str(run), "--min-int8-agreement", GATE, *chosen]
        status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if status not in (0, REFUSED):
            sys.exit(status)
        made = read(run / "export.json", ExportResult)
        for artifact in made.artifacts:
            if artifact.parity is None or artifact.model != "compressed" or artifact.quant.scheme not in ("fp32", "int8-static"):
                continue
            bound = 1.0 if artifact.quant.scheme == "fp32" else float(GATE)
            name = f"top-1 agreement of {artifact.format} {artifact.quant.scheme} with the model, {artifact.parity.samples} crops"
            rows.add(name, ours=artifact.parity.top1_agreement or 0.0, peer=None, bound=bound, sense=">=")
    rows.end()


if __name__ == "__main__":
    main()
