"""The checks of a network and its data that take seconds, as a table: a new check is one row and one pure function of a probe."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgecompress.errors import ConfigError, EdgeCompressError, UnsupportedError, first_line
from edgecompress.network.batches import Batch
from edgecompress.network.data_checks import check_data, check_labels, check_range, check_statistics
from edgecompress.network.factors import Factors
from edgecompress.network.probe import Fact, Probe, split_remedy
from edgecompress.network.run_checks import (
    check_batch,
    check_batch_axis,
    check_repeatable,
    check_run,
    check_training_mode,
    check_training_run,
)
from edgecompress.network.surgery import find_hidden_layers, find_second_names
from edgecompress.network.weights import nonfinite_tensors
from edgecompress.records.check import CheckResult, Finding

MAX_NAMES: Final = 3  # names in a message; more of them say nothing new
OTHER_MACS_TOLERANCE: Final = 0.001  # fraction of the MACs that is worth a word


class Check(NamedTuple):
    """A row of the table.

    Attributes:
        find: Yields what is wrong, or worth a word.
        blocks: The first step that an error of it stops; those before go on.
        error: Class of the exception that a command raises.
        needs: Checks that must have passed; otherwise this one would repeat their findings.
        names_subject: Whether its facts begin with what they are about, e.g. a line of the user's code.
    """

    find: Callable[[Probe], Iterator[Fact]]
    blocks: str = "analyze"
    error: type[EdgeCompressError] = ConfigError
    needs: tuple[str, ...] = ()
    names_subject: bool = False


def _check_module(p: Probe) -> Iterator[Fact]:
    model: object = p.model
    if not isinstance(model, nn.Module):
        yield Fact(f"model() returned {type(model).__name__}", "return a torch.nn.Module")
        return
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield Fact(f"{name or 'the model'} is a TorchScript module", "return the torch.nn.Module that it was made from")
            return
        if isinstance(module, Factors):
            yield Fact(f"{name} is already decomposed", "give the dense model")
            return
    if lazy := [name for name, x in _tensors(model) if is_lazy(x)]:
        yield Fact(f"{lazy[0]} has no shape yet, a lazy layer's", "run the network once in model(), before its weights are loaded")


def _check_devices(p: Probe) -> Iterator[Fact]:
    if empty := [name for name, x in _tensors(p.model) if x.is_meta]:
        yield Fact(f"{empty[0]} is on the meta device, without values", "load the weights in model()")
    elif moved := [name for name, x in _tensors(p.model) if x.device.type != "cpu"]:
        yield Fact(f"{_list_names(moved)} on another device; the copy that is compressed is on the CPU", severity="note")


def _check_copy(p: Probe) -> Iterator[Fact]:
    try:
        copy.deepcopy(p.model)
    except Exception as error:  # of whatever its modules hold
        if "graph leaves" in str(error):
            remedy = "let model() make plain weights of them, by torch.nn.utils.prune.remove or remove_weight_norm"
            yield Fact("it cannot be copied: weights are computed by hooks, as those of pruning and of the old weight_norm are", remedy)
        else:
            yield Fact(f"it cannot be copied: {first_line(error)}", "keep locks, files and other handles out of its modules")


def _check_dtypes(p: Probe) -> Iterator[Fact]:
    other = [(name, x) for name, x in _tensors(p.model) if (x.is_floating_point() or x.is_complex()) and x.dtype is not torch.float32]
    if other:
        name, x = other[0]
        yield Fact(f"{name} is {_name_dtype(x)}", "give the model in float32, model.float(), and float32 example inputs")
        return
    for i, x in enumerate(p.example):
        if (x.is_floating_point() or x.is_complex()) and x.dtype is not torch.float32:
            yield Fact(f"example input {i} is {_name_dtype(x)}", "return it in float32, x.float()")


def _check_values(p: Probe) -> Iterator[Fact]:
    for name in nonfinite_tensors(p.model):
        yield Fact(f"weight {name} holds NaN or infinity", "retrain or repair the checkpoint")
        return


def _check_export(p: Probe) -> Iterator[Fact]:
    if isinstance(p.program, EdgeCompressError):
        fact, remedy = split_remedy(str(p.program))
        yield Fact(fact.split(": ", 1)[-1], remedy)


def _check_hidden_layers(p: Probe) -> Iterator[Fact]:
    hidden = find_hidden_layers(p.model)
    if hidden:
        names = _list_names([f"{name} ({type(module).__name__})" for name, module in hidden.items()])
        macs = count_other_macs(p)
        total = "" if not isinstance(p.program, torch.export.ExportedProgram) else f"; {_share(sum(macs.values()), p)} of the MACs"
        yield Fact(
            f"{names}: not registered{total}. They are neither compressed nor trained, and no checkpoint holds them",
            "keep them in nn.ModuleList or nn.ModuleDict",
            "warning",
        )


def _check_macs(p: Probe) -> Iterator[Fact]:
    if not isinstance(p.program, torch.export.ExportedProgram) or find_hidden_layers(p.model):
        return
    macs = count_other_macs(p)
    if sum(macs.values()) > OTHER_MACS_TOLERANCE * max(1, executed_macs(p)):
        share, names = _share(sum(macs.values()), p), _list_names(list(macs))
        yield Fact(
            f"{share} of the MACs are done with weights of no Linear or convolution, which stay as they are: {names}", severity="note"
        )


def _check_second_names(p: Probe) -> Iterator[Fact]:
    if names := find_second_names(p.model):
        pairs = [f"{other} is {name}" for other, name in names.items()]
        yield Fact(f"{_list_names(pairs)}: one module under two names, compressed once under both", severity="note")


def _check_frozen(p: Probe) -> Iterator[Fact]:
    frozen = [name for name, x in p.model.named_parameters() if not x.requires_grad]
    if frozen:
        total = sum(1 for _ in p.model.parameters())
        yield Fact(f"{len(frozen)} of {total} parameters are frozen ({_list_names(frozen)}); they are trained in a copy", severity="note")


def _check_outputs(p: Probe) -> Iterator[Fact]:
    yield from _try_call(p.read_outputs)


def _check_judging(p: Probe) -> Iterator[Fact]:
    yield from _try_call(p.judge)


def _try_call(function: Callable[[], object] | None) -> Iterator[Fact]:
    try:
        if function is not None:
            function()
    except EdgeCompressError as error:
        yield Fact(*split_remedy(str(error)))


STATIC: Final = ("module", "device", "number format", "finite weights", "copy")
RUNS: Final = (*STATIC, "example")
ONE_BY_ONE: Final = (*RUNS, "batch axis")
SAMPLES_ALONE: Final = (*ONE_BY_ONE, "repeatable", "export", "batch")
CHECKS: Final = {
    "module": Check(_check_module),
    "device": Check(_check_devices, needs=STATIC[:1]),
    "number format": Check(_check_dtypes, needs=STATIC[:2]),
    "finite weights": Check(_check_values, needs=STATIC[:2]),
    "copy": Check(_check_copy, needs=STATIC[:2]),
    "example": Check(check_run, needs=STATIC, names_subject=True),
    "batch axis": Check(check_batch_axis, needs=RUNS),
    "repeatable": Check(check_repeatable, needs=ONE_BY_ONE),
    "export": Check(_check_export, blocks="plan", error=UnsupportedError, needs=(*ONE_BY_ONE, "repeatable")),
    "batch": Check(check_batch, needs=(*ONE_BY_ONE, "repeatable", "export")),
    "registered layers": Check(_check_hidden_layers, needs=ONE_BY_ONE),
    "counted weights": Check(_check_macs, needs=ONE_BY_ONE),
    "names": Check(_check_second_names, needs=STATIC),
    "frozen weights": Check(_check_frozen, needs=STATIC),
    "training run": Check(check_training_run, blocks="finetune", needs=SAMPLES_ALONE, names_subject=True),
    "training mode": Check(check_training_mode, blocks="finetune", error=UnsupportedError, needs=(*SAMPLES_ALONE, "training run")),
    "data": Check(check_data, blocks="plan", needs=ONE_BY_ONE, names_subject=True),
    "data range": Check(check_range, blocks="plan", needs=ONE_BY_ONE),
    "data statistics": Check(check_statistics, blocks="plan", needs=ONE_BY_ONE),
    "labels": Check(check_labels, blocks="plan", needs=(*ONE_BY_ONE, "export")),
    "outputs": Check(_check_outputs, blocks="plan", needs=(*ONE_BY_ONE, "repeatable", "export", "data"), names_subject=True),
    "metric and loss": Check(_check_judging, blocks="plan", needs=(*ONE_BY_ONE, "data", "outputs"), names_subject=True),
}


def find_all(probe: Probe, name: str, kinds: Iterable[str] = tuple(CHECKS)) -> CheckResult:
    """Return the findings of the named checks, or of all of them, in the order of the table."""
    findings: list[Finding] = []
    done: list[str] = []
    failed: set[str] = set()
    for kind in kinds:
        if failed.isdisjoint(CHECKS[kind].needs):
            facts = list(CHECKS[kind].find(probe))
            findings += [Finding(kind=kind, severity=fact.severity, text=fact.text, remedy=fact.remedy) for fact in facts]
            done.append(kind)
            failed |= {kind for fact in facts if fact.severity == "error"}
    exported = "export" in done and isinstance(probe.program, torch.export.ExportedProgram)
    macs, other = (executed_macs(probe), count_other_macs(probe)) if exported else (None, {})
    return CheckResult(model=name, checks=tuple(done), findings=tuple(findings), macs=macs, other_macs=other)


def check_runs(model: nn.Module, example: Batch, rows: Batch, *, subject: str) -> None:
    """Check that a network runs on its example, one sample of each input along their first axes.

    Args:
        rows: The example as the user gave it, with any number of rows.

    Raises:
        ConfigError: See `check_dense`; or it does not run, or the first axis is no batch.
    """
    check_dense(model, subject=subject)
    for finding in find_all(Probe(model.eval(), example, rows=rows), subject, ONE_BY_ONE).errors:
        raise as_error(finding, subject)


def check_dense(model: nn.Module, *, subject: str) -> None:
    """Check that a run can start from `model`, without running it.

    Raises:
        ConfigError: The model is no module, is already decomposed, holds no values, is not float32, has a weight that is not finite, or
            cannot be copied.
    """
    for finding in find_all(Probe(model, ()), subject, STATIC).errors:
        raise as_error(finding, subject)


def as_error(finding: Finding, subject: str) -> EdgeCompressError:
    """Return the exception that a command raises for a finding."""
    check = CHECKS[finding.kind]
    return check.error(f"{'' if check.names_subject else f'{subject}: '}{finding.text}; {finding.remedy}")


def executed_macs(p: Probe) -> int:
    """Return the MACs of all weights in the exported graph."""
    return sum(p.weight_macs.values())


def count_other_macs(p: Probe) -> dict[str, int]:
    """Return the MACs of each weight of the exported graph that no counted layer holds."""
    first: dict[int, str] = {}
    aliases = {name: first.setdefault(id(module), name) for name, module in p.model.named_modules(remove_duplicate=False)}
    owners = {name: name.rpartition(".")[0] for name in p.weight_macs}
    return {name: macs for name, macs in p.weight_macs.items() if aliases.get(owners[name], owners[name]) not in p.layers}


def _share(macs: int, p: Probe) -> str:
    return f"{macs / max(1, executed_macs(p)):.1%}"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _name_dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
