"""The report of a run can be read while its export goes on."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import report_records

from edgecompress.pipeline import publication
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import to_json


@dataclasses.dataclass(frozen=True)
class Context:
    """What `publish` needs of a context; `run` writes the records of all steps."""

    run: Any
    on_step: Any


@pytest.fixture
def records() -> dict[str, Any]:
    known = report_records.all_records()
    return {"analyze": known["stats"], "plan": known["plan"], "decompose": known["decomposed"], "finetune": known["finetuned"]}


def publish_and_watch(folder: Path, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, reused: bool = False) -> dict[str, bool]:
    """Publish a run whose steps do nothing but write records; return for each step whether there was a report after it."""
    seen: dict[str, bool] = {}

    def run(context: Context, _: str) -> None:
        for name, record in records.items():
            (folder / STEPS[name].files[0]).write_bytes(to_json(record))
            context.on_step(name, record, 0.0, reused)
            seen[name] = (folder / "report.json").exists()
        raise InterruptedError  # the rest of `publish` is not of interest

    monkeypatch.setattr(publication, "run", run)
    place = SimpleNamespace(folder=folder, path=lambda name: folder / name)
    with pytest.raises(InterruptedError):
        publication.publish(Context(place, lambda *_: None))  # type: ignore[arg-type]
    return seen


def test_there_is_a_report_from_the_plan_on(tmp_path: Path, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = publish_and_watch(tmp_path, records, monkeypatch)
    assert seen == {"analyze": False, "plan": True, "decompose": True, "finetune": True}
    assert json.loads((tmp_path / "report.json").read_bytes())["verdict"]["sentence"]


def test_no_report_mixes_new_steps_with_those_of_an_earlier_run(
    tmp_path: Path, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export.json").write_text("{}")
    assert not any(publish_and_watch(tmp_path, records, monkeypatch).values())


def test_a_step_that_is_reused_is_no_news(tmp_path: Path, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(publish_and_watch(tmp_path, records, monkeypatch, reused=True).values())
