"""Build the prebuilt artifacts anew: export the embedded example into a fresh run, then copy what passed the gate to this folder."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
KEPT = (".tflite", ".ptl", ".json", ".safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "edgecompress", "export", "--target", "android", "--run", str(run)], check=True)
        for old in HERE.iterdir():
            if old.suffix in KEPT:
                old.unlink()
        for new in [*(run / "artifacts").iterdir(), run / "plan.json"]:
            if new.suffix in KEPT:
                shutil.copyfile(new, HERE / new.name)


if __name__ == "__main__":
    main()
