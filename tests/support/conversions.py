"""Conversions of small networks to one format, with the outputs that the runner's runtime computes from each file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgecompress.artifacts.execution import run_artifact
from edgecompress.errors import ConfigError, EdgeCompressError
from edgecompress.network.exported import to_program, write_program
from edgecompress.records import ConversionReply, ConversionRequest
from support.converter_models import Attention, Branching, Clamped, Forked, Heads, Median, Placed, Residual, Sound, causal, settled
from support.converter_session import ConverterSessions

SAMPLES = 32
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
    further_threads: int

    def max_rel(self) -> float:
        pairs = zip(self.outputs, self.references, strict=True)
        return max(float((found - wanted).abs().max() / (wanted.max() - wanted.min())) for found, wanted in pairs)

    def sqnr_db(self) -> float:
        pairs = zip(self.outputs, self.references, strict=True)
        ratios = [wanted.square().sum() / (found - wanted).square().sum().clamp_min(1e-30) for found, wanted in pairs]
        return float(10 * torch.log10(torch.stack(ratios)).min())


class Conversions:
    """Cases of one format; each network is exported, and each case converted, when a test first asks."""

    def __init__(self, folder: Path, form: str, cases: dict[str, Case], sessions: ConverterSessions) -> None:
        self.folder, self.form, self.cases, self.sessions = folder, form, cases, sessions
        self.references: dict[str, list[Tensor]] = {}
        self.converted: dict[str, ConversionReply | EdgeCompressError] = {}

    def export(self, net: str) -> None:
        """Write the program of a network and its inputs, and keep its outputs."""
        if net in self.references:
            return
        build, shapes = NETS[net]
        torch.manual_seed(0)
        data = tuple(torch.randn(SAMPLES, *shape) for shape in shapes)
        model = settled(build(), data)
        with torch.no_grad():
            given = [model(*(x[k : k + 1] for x in data)) for k in range(SAMPLES)]
        outputs = [y if isinstance(y, tuple) else (y,) for y in given]
        save_file({f"input_{i}": x for i, x in enumerate(data)}, self.folder / f"{net}.safetensors")
        write_program(to_program(model, tuple(x[:1] for x in data)), self.folder / f"{net}.pt2")
        self.references[net] = [torch.cat(each) for each in zip(*outputs, strict=True)]

    def convert(self, key: str) -> ConversionReply | EdgeCompressError:
        """Convert a case unless that is done; return the reply or the refusal."""
        if key not in self.converted:
            case = self.cases[key]
            request = self.request(case, f"{key}.file")
            try:
                self.converted[key] = self.sessions.convert(self.form, request, self.folder / f"{case.net}.safetensors")
            except EdgeCompressError as error:
                self.converted[key] = error
        return self.converted[key]

    def request(self, case: Case, output: str) -> ConversionRequest:
        self.export(case.net)
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
        reply = self.convert(key)
        assert isinstance(reply, ConversionReply), reply
        path = self.folder / f"{key}.file"
        with np.load(f"{path}.npz") as arrays:
            outputs = [torch.from_numpy(arrays[name]) for name in arrays.files]
        seen = json.loads(Path(f"{path}.run").read_text())
        return Converted(path, reply, outputs, self.references[self.cases[key].net], seen["constants"], seen["further_threads"])

    def damaged(self, key: str, how: str, path: Path) -> str:
        """Write the "half" or the "start" of a file, or "noise" after its first bytes, to `path`; return the error of running that."""
        whole, reply = self[key].path.read_bytes(), self[key].reply
        noise = np.random.default_rng(0).bytes(len(whole) - 64)
        path.write_bytes({"half": whole[: len(whole) // 2], "start": whole[:20], "noise": whole[:64] + noise}[how])
        sample = tuple(torch.zeros(spec.shape) for spec in reply.inputs)
        with pytest.raises(ConfigError) as caught:
            run_artifact(path, reply.inputs, reply.outputs, sample)
        return str(caught.value)

    def refusal(self, key: str) -> str:
        """Return `Class: message` of a case that is refused."""
        error = self.convert(key)
        assert isinstance(error, EdgeCompressError), error
        return f"{type(error).__name__}: {error}"
