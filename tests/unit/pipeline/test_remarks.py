"""How the checkpoint and the data were read reaches the terminal, the run and the report; data that cannot be used are refused first."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgecompress.cli.views.check import list_findings
from edgecompress.data import Samples
from edgecompress.data.recipe import recipe_from_model
from edgecompress.errors import ConfigError
from edgecompress.options import Options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.records import CheckResult, ModelStats, read_record
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.make_report import collect_notes
from edgecompress.runs import open_run


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 12))


def analyze(tmp_path, *, labels=(), options=None, **given):
    recipe = recipe_from_model(network(), (torch.zeros(1, 1, 4, 4),), name="net", labels=labels, **given)
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(options or Options())
        context = open_context(run, recipe)
        return run_steps(context, "analyze"), context


def write_numbered(folder):
    for name in map(str, range(12)):
        (folder / "Train" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((4, 4), 20 * int(name), np.uint8)).save(folder / "Train" / name / f"{i}.png")
    return folder


def test_remarks_are_told_in_the_terminal_and_in_the_report(tmp_path):
    folder = write_numbered(tmp_path / "data")
    (folder / "Train" / "3" / "5.png").write_bytes(b"<html>")
    torch.save({"model": {f"module.{key}": value for key, value in network().state_dict().items()}}, tmp_path / "best.pth")
    stats, context = analyze(tmp_path, options=Options(data=str(folder), weights=str(tmp_path / "best.pth")))
    expected = (
        "best.pth: weights taken from 'model'; prefix 'module.' removed",
        f"1 unreadable images in {folder / 'Train'} were left out: 3/5.png",
        "numbered class folders were taken in the order of their names as text (0, 1, 10, 11, 2, …); labels() gives another order",
    )
    assert isinstance(stats, ModelStats)
    assert stats.notes == expected
    found = read_record(context.path("check.json"), CheckResult)
    assert list(list_findings(found))[:3] == [f"note: {note}" for note in expected]
    assert found.checks[:2] == ("checkpoint", "module")
    told = collect_notes(RunRecords(stats=stats))
    assert [(note.source, note.text) for note in told] == [("analyze", note) for note in expected]


def test_labels_name_the_classes_of_folders_and_of_the_recipes_own_samples(tmp_path):
    labels = tuple(map(str, range(12)))
    folder = write_numbered(tmp_path / "data")
    stats, context = analyze(tmp_path / "a", labels=labels, options=Options(data=str(folder)))
    samples = context.data.dataset("train")
    assert stats.notes == ()
    assert samples.class_names == labels
    assert [round(float(x.mean() * 255 / 20)) for x, _ in samples] == [label for _, label in samples]
    own = Samples(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), source="own", class_names=("10", "2"))
    _, context = analyze(tmp_path / "b", labels=labels, eval_data=own)
    assert context.data.dataset("eval").labels.tolist() == [10, 2]


def test_data_that_cannot_be_used_are_refused_before_anything_is_computed(tmp_path):
    folder = write_numbered(tmp_path / "data")
    (folder / "Train" / "12").mkdir()
    with pytest.raises(ConfigError, match="Train/12: a class without images"):
        analyze(tmp_path, options=Options(data=str(folder)))
    assert not (tmp_path / "run" / "stats.json").exists()
