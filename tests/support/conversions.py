"""Conversions of small networks by one converter program, all in one process, with what the runner's runtime computes from each file.

Importing a toolchain takes longer than converting a small network.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgecompress.artifacts.execution import run_artifact
from edgecompress.errors import ConfigError
from edgecompress.network.exported import to_program, write_program
from edgecompress.records import ConversionReply, ConversionRequest, from_json, to_json
from edgecompress.toolchains import program_root, runner_parts
from support.converter_models import Attention, Branching, Clamped, Forked, Heads, Median, Placed, Residual, Sound, causal, settled

SAMPLES = 32
DRIVER = """
import importlib, json, os, sys
from pathlib import Path
sys.path[:1] = sys.argv[1:3]
form, paths = sys.argv[3], [Path(path) for path in sys.argv[4:]]
program = importlib.import_module(f"converters.to_{form}")
from edgecompress.errors import EdgeCompressError
from edgecompress.records import ConversionRequest, from_json, to_json
from runner_backends import BACKENDS
import numpy as np
from safetensors.numpy import load_file

threads = {}
for path in paths:
    request = from_json(path.read_bytes(), ConversionRequest, source=str(path))
    try:
        content, reply = program.convert(request)
    except EdgeCompressError as error:
        path.with_suffix(".refused").write_text(f"{type(error).__name__}: {error}")
        continue
    Path(request.output).write_bytes(content)
    path.with_suffix(".reply").write_bytes(to_json(reply))
    model = BACKENDS[form](Path(request.output), 1, [], [])
    data = list(load_file(path.with_suffix(".data")).values())
    runs = [model.run([x[k : k + 1] for x in data]) for k in range(len(data[0]))]
    np.savez(path.with_suffix(".npz"), *(np.concatenate(each) for each in zip(*runs)))
    constants = sorted(model.program.method_names - {"forward"}) if form == "executorch" else []
    path.with_suffix(".constants").write_text(json.dumps({name: model.program.load_method(name).execute([]) for name in constants}))
    for count in (1, 3):
        del model
        model = BACKENDS[form](Path(request.output), count, [], [])
        threads[count] = len(os.listdir("/proc/self/task"))
paths[0].with_name("threads.json").write_text(json.dumps(threads[3] - threads[1]))
"""


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((1, 28, 28),)),
    "heads": (Heads, ((3, 10, 14), (5,))),
    "sound": (Sound, ((3, 40),)),
    "clamped": (Clamped, ((3, 12, 12),)),
    "placed": (lambda: Placed(Median()), ((3, 8, 8),)),
    "causal": (causal, ((12, 16),)),
    "masked": (lambda: Attention("added"), ((12, 8),)),
    "branching": (Branching, ((3, 10, 10),)),
    "forked": (Forked, ((8, 12, 12),)),
}


class Case(NamedTuple):
    """`asked` is what stands in the request beside net and scheme."""

    net: str
    scheme: str
    asked: dict[str, Any] = {}


class Converted(NamedTuple):
    path: Path
    reply: ConversionReply
    outputs: list[Tensor]
    references: list[Tensor]
    constants: dict[str, list[Any]]

    def max_rel(self) -> float:
        pairs = zip(self.outputs, self.references, strict=True)
        return max(float((found - wanted).abs().max() / (wanted.max() - wanted.min())) for found, wanted in pairs)

    def sqnr_db(self) -> float:
        pairs = zip(self.outputs, self.references, strict=True)
        ratios = [wanted.square().sum() / (found - wanted).square().sum().clamp_min(1e-30) for found, wanted in pairs]
        return float(10 * torch.log10(torch.stack(ratios)).min())


class Conversions:
    """Converts every case when it is made."""

    def __init__(self, folder: Path, form: str, cases: dict[str, Case]) -> None:
        self.folder, self.form, self.cases = folder, form, cases
        self.references: dict[str, list[Tensor]] = {}
        for name in dict.fromkeys(case.net for case in cases.values()):
            build, shapes = NETS[name]
            torch.manual_seed(0)
            data = tuple(torch.randn(SAMPLES, *shape) for shape in shapes)
            model = settled(build(), data)
            with torch.no_grad():
                given = [model(*(x[k : k + 1] for x in data)) for k in range(SAMPLES)]
            outputs = [y if isinstance(y, tuple) else (y,) for y in given]
            self.references[name] = [torch.cat(each) for each in zip(*outputs, strict=True)]
            save_file({f"input_{i}": x for i, x in enumerate(data)}, folder / f"{name}.safetensors")
            write_program(to_program(model, tuple(x[:1] for x in data)), folder / f"{name}.pt2")
        for key, case in cases.items():
            (folder / f"{key}.json").write_bytes(to_json(self.request(case, f"{key}.file")))
            (folder / f"{key}.data").symlink_to(folder / f"{case.net}.safetensors")
        work = folder / "work"
        work.mkdir()
        folders = (str(program_root()), str(runner_parts()[0].parent))
        argv = [sys.executable, "-c", DRIVER, *folders, form, *(str(folder / f"{key}.json") for key in cases)]
        done = subprocess.run(argv, cwd=work, capture_output=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr.decode()[-3000:]

    def request(self, case: Case, output: str) -> ConversionRequest:
        return ConversionRequest(
            program=str(self.folder / f"{case.net}.pt2"),
            output=str(self.folder / output),
            scheme=case.scheme,
            calibration=str(self.folder / f"{case.net}.safetensors")
            if "int8-static" in (case.scheme, *case.asked.get("layers", {}).values())
            else "",
            **case.asked,
        )

    def __getitem__(self, key: str) -> Converted:
        file = self.folder / f"{key}.json"
        with np.load(file.with_suffix(".npz")) as arrays:
            outputs = [torch.from_numpy(arrays[name]) for name in arrays.files]
        reply = from_json(file.with_suffix(".reply").read_bytes(), ConversionReply, source=key)
        constants = json.loads(file.with_suffix(".constants").read_text())
        return Converted(self.folder / f"{key}.file", reply, outputs, self.references[self.cases[key].net], constants)

    def damaged(self, key: str, how: str, path: Path) -> str:
        """Return what proving a file says of the "half" or the "start" of it, or of "noise" behind its first bytes; write it to `path`."""
        whole, reply = self[key].path.read_bytes(), self[key].reply
        noise = np.random.default_rng(0).bytes(len(whole) - 64)
        path.write_bytes({"half": whole[: len(whole) // 2], "start": whole[:20], "noise": whole[:64] + noise}[how])
        sample = tuple(torch.zeros(spec.shape) for spec in reply.inputs)
        with pytest.raises(ConfigError) as caught:
            run_artifact(path, reply.inputs, reply.outputs, sample)
        return str(caught.value)

    def refusal(self, key: str) -> str:
        """Return `Class: message` of a case that was refused."""
        return (self.folder / f"{key}.refused").read_text()

    def further_threads(self) -> int:
        """Return how many threads more there were with 3 than with 1 asked for."""
        return int(json.loads((self.folder / "threads.json").read_text()))
