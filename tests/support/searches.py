"""A study without a network: what a trial scores is computed from its choice, so that laws of studies take no time."""

import platform
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from edgecompress.records import Axis, Score, SearchPoint, SearchSpec
from edgecompress.studies.loop import explore
from edgecompress.studies.samplers import ReseededSampler
from edgecompress.studies.storage import Study, display_name, open_storage, open_study, store_spec

SPACE = {
    "macs_ratio": Axis(low=0.2, high=1.0),
    "method": Axis(values=("auto", "svd")),
    "output": Axis(values=("tflite fp32", "tflite fp16")),
}
SPEC = SearchSpec(model="net", network="", options={"seed": 0}, space=SPACE, sampler="tpe", device="here")


def score(choice):
    small = choice["output"] == "tflite fp16"
    ratio = choice["macs_ratio"]
    return Score(
        accuracy=ratio**0.5 - 0.01 * small, latency_ms=ratio + 0.1 * (choice["method"] == "svd"), size_bytes=int(1e5 * ratio / (1 + small))
    )


def point(number, folder, choice):
    """What a trial makes of its choice; it leaves a mark in its folder, as a run does."""
    with (folder / "starts").open("a") as file:
        file.write("x")
    return SearchPoint(
        trial=number,
        run=f"trials/{folder.name}",
        host=platform.node(),
        choice=choice,
        artifact="net-fp32.tflite",
        score=score(choice),
        accuracy_of="top-1",
        macs_ratio=choice["macs_ratio"],
        dense=None,
        backend="none",
        seconds=0.0,
    )


@contextmanager
def study(folder, *, place="", sampler="tpe", seed=0, name="net"):
    place = str(place or Path(folder) / "study.sqlite3")
    with open_storage(place) as storage:
        found, before = open_study(storage, name, place=place)
        if before is None:
            store_spec(found, SPEC)
        found.sampler = ReseededSampler(sampler, seed)
        yield Study(found, storage, display_name(place), Path(folder))


def main():
    """`python -m support.searches FOLDER PLACE TRIALS SECONDS`: explore; each trial takes SECONDS."""
    folder, place, trials, seconds = sys.argv[1:]

    def make(number, inside, choice):
        made = point(number, inside, choice)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        time.sleep(float(seconds))
        return made

    with study(folder, place=place) as ours:
        explore(ours, SPACE, make, trials=int(trials))


if __name__ == "__main__":
    main()
