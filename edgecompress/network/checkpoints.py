"""Load the checkpoints that training scripts leave: wrapped, nested, beside an optimizer, in half precision, in shards."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network.checkpoint_files import Unread, read_checkpoint, refuse_objects
from edgecompress.network.weights import MAX_NAMED, State, describe_difference, describe_misfit

MAX_DEPTH: Final = 2  # dicts within dicts, as {"ema": {"state_dict": …}}
TRIED_PREFIXES: Final = 8  # of the names in one dict; more networks than these do not lie in one checkpoint
# Parts of names that torch's wrappers put anywhere into a key; they are no part of the network.
WRAPPERS: Final = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Keys of dicts and prefixes of keys, best first. The average of weights over training comes after all others, a teacher last.
USUAL_NAMES: Final = ("module", "state_dict", "model", "model_state_dict", "model_state", "net", "network", "student", "weights", "params")
AVERAGES: Final = {"ema", "swa", "averaged", "average", "shadow"}
TEACHERS: Final = {"teacher", "momentum", "target"}
RANK_OF_OTHERS: Final = len(USUAL_NAMES)
# What only training reads: first parts of keys that a network may lack, and last parts of keys that may be missing.
TRAINING_PARTS: Final = {"criterion", "criteria", "loss", "losses", "lossfn", "metric", "metrics", "acc", "accuracy"}
COUNTERS: Final = {"num_batches_tracked", "n_averaged", "total_ops", "total_params"}


@dataclass(frozen=True)
class _Match:
    """How the tensors of one dict of a checkpoint, under one prefix, fit a network.

    Attributes:
        place: Keys of the dicts that lead to the tensors.
        prefix: What was taken off the keys, as it stands in the file.
        wrappers: Parts that were taken out of the middle of keys.
        state: Tensors by the network's own keys.
        wrong: Differences in shape or type, in words.
        missing, unknown: Keys without which the network cannot be evaluated, and keys that no network of this kind has.
        unread: Keys of the file that evaluation does not read.
        uncounted: Counters of the network that the file lacks.
        wrapper: What stands before all keys of the network, and not before those of the file.
    """

    place: tuple[str, ...]
    prefix: str
    wrappers: tuple[str, ...]
    state: State
    wrong: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    unread: tuple[str, ...]
    uncounted: tuple[str, ...]
    wrapper: str = ""

    @property
    def fits(self) -> bool:
        return bool(self.state) and not (self.wrong or self.missing or self.unknown)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the names that lead to the tensors, the worst one first: lower is better."""
        ranks = [_rank_name(name) for name in (*self.place, *filter(None, self.prefix.split(".")))]
        return (max(ranks, default=0), *ranks)

    def describe_place(self) -> str:
        """Return where the weights lie, for people."""
        under = f"under {' / '.join(map(repr, self.place))}" if self.place else ""
        return " ".join(filter(None, (under, f"with the prefix {self.prefix!r}" if self.prefix else ""))) or "at its top"


def load_checkpoint(model: nn.Module, path: Path) -> str:
    """Load the weights that a checkpoint holds for `model`, wherever in it they lie.

    Keys may have a prefix or parts of wrappers, lie in a dict within the file, and stand beside tensors that only training reads. Every
    weight of the network must be there in its shape; numbers of fewer bits are widened.

    Returns:
        What was done to the file's keys and numbers, in one sentence; "" for a plain state dict of this network.

    Raises:
        ConfigError: The file cannot be read without running its code, nothing in it fits the network, or several networks' weights do.
    """
    content = read_checkpoint(path)
    own = model.state_dict()
    states = list(_list_states(content))
    matches = [match for place, state in states for match in _match_prefixes(own, place, state)]
    wrapper = _find_common_prefix(own)
    if wrapper and not any(match.fits for match in matches):
        inner = {key.removeprefix(wrapper): value for key, value in own.items()}
        found = [match for place, state in states for match in _match_prefixes(inner, place, state, wrapper)]
        matches = [match for match in found if match.fits] or matches
    fitting = sorted((match for match in matches if match.fits), key=lambda match: match.ranks)
    if not fitting:
        raise _explain_misfit(matches, content, path)
    chosen, *others = fitting
    if rival := next((other for other in others if _rivals(chosen, other)), None):
        places = f"{chosen.describe_place()} and {rival.describe_place()}"
        raise ConfigError(f"{path}: the weights of several networks fit: {places}; save the state dict of the one to use")
    note = _describe_load(chosen, others, content, own)
    model.load_state_dict({**own, **chosen.state})
    return f"{path.name}: {note}" if note else ""


def _list_states(content: object, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield the tensors of each dict of a checkpoint that holds some, with the keys that lead to the dict."""
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield place, tensors
    if len(place) < MAX_DEPTH:
        for key, value in named.items():
            yield from _list_states(value, (*place, key))


def _find_common_prefix(own: State) -> str:
    """Return the first part of all keys of a network that holds one module alone: a checkpoint may be of that module."""
    parts = {key.partition(".")[0] for key in own if "." in key}
    return f"{parts.pop()}." if len(parts) == 1 and all("." in key for key in own) else ""


def _match_prefixes(own: State, place: tuple[str, ...], state: State, wrapper: str = "") -> Iterator[_Match]:
    """Yield how tensors fit a network under each of the likeliest prefixes of their keys.

    Args:
        wrapper: Prefix that was taken off the network's own keys.
    """
    names = {_unwrap_key(key): key for key in state}
    ours = {_unwrap_key(key): key for key in own}
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        found.update("".join(f"{part}." for part in parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in ours)
    for prefix, _ in found.most_common(TRIED_PREFIXES) or [("", 0)]:
        match = _match_prefix(own, ours, place, {name: (key, state[key]) for name, key in names.items()}, prefix)
        state_of_own = {f"{wrapper}{key}": value for key, value in match.state.items()}
        yield replace(match, state=state_of_own, wrapper=wrapper) if wrapper else match


def _match_prefix(
    own: State, ours: Mapping[str, str], place: tuple[str, ...], named: Mapping[str, tuple[str, Tensor]], prefix: str
) -> _Match:
    """Return how tensors fit a network under one prefix.

    Args:
        ours: The network's keys by their names without wrappers.
        named: The file's keys and tensors by their names without wrappers.
    """
    state = {key: named[prefix + name][1] for name, key in ours.items() if prefix + name in named}
    wrong = [describe_difference(key, value, own[key]) for key, value in state.items() if not _is_loadable(key, value, own[key])]
    held = {(own[key].data_ptr(), own[key].shape) for key in state if own[key].numel()}  # tied weights are saved once
    absent = [key for key in own if key not in state and (own[key].data_ptr(), own[key].shape) not in held]
    uncounted = [key for key in absent if _is_counter(key) or _is_for_training(key)]
    rest = [name.removeprefix(prefix) for name in named if name.startswith(prefix) and name.removeprefix(prefix) not in ours]
    beside = [name for name in named if not name.startswith(prefix)]  # other members of the object that held the network
    unread = [name for name in rest if _is_unread(name, named[prefix + name][1])]
    raw = {key: named[prefix + name][0] for name, key in ours.items() if prefix + name in named}
    whole = next((given.removesuffix(key) for key, given in raw.items() if given.endswith(f".{key}")), prefix)
    return _Match(
        place=place,
        prefix=whole,
        wrappers=tuple(sorted(WRAPPERS.intersection(part for given in raw.values() for part in given.removeprefix(whole).split(".")))),
        state={key: value for key, value in state.items() if not _is_counter(key) or _is_loadable(key, value, own[key])},
        wrong=tuple(wrong),
        missing=tuple(sorted(set(absent) - set(uncounted))),
        unknown=tuple(sorted(set(rest) - set(unread))),
        unread=(*unread, *beside),
        uncounted=tuple(uncounted),
    )


def _unwrap_key(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _is_loadable(key: str, value: Tensor, own: Tensor) -> bool:
    """Whether a tensor can be copied into the network's without loss of meaning; integers are no weights."""
    if value.shape != own.shape:
        return False
    return value.is_floating_point() == own.is_floating_point() or _is_counter(key)


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def _is_for_training(key: str) -> bool:
    """Whether a key belongs to a criterion or a metric: `criterion.weight`, `train_acc.total`."""
    return not TRAINING_PARTS.isdisjoint(re.split(r"[_\d]+", key.partition(".")[0].casefold()))


def _is_unread(name: str, value: Tensor) -> bool:
    """Whether evaluation of a network that lacks this key is the same: criteria, counters, auxiliary heads, teachers, index tables."""
    parts = re.split(r"[_\d]+", name.partition(".")[0].casefold())
    beside = parts[0].startswith("aux") or not (TEACHERS | AVERAGES | {"optimizer"}).isdisjoint(parts)
    return beside or _is_counter(name) or _is_for_training(name) or not (value.is_floating_point() or value.is_complex())


def _rank_name(name: str) -> int:
    if name in WRAPPERS:
        return 0
    if name in USUAL_NAMES:
        return USUAL_NAMES.index(name)
    parts = set(re.split(r"[_\d]+", name.casefold()))
    return RANK_OF_OTHERS + (2 if parts & TEACHERS else 1 if parts & AVERAGES else 0)


def _rivals(chosen: _Match, other: _Match) -> bool:
    """Whether nothing but the order in the file speaks for the chosen weights, and the other ones are different."""
    if chosen.ranks[0] < RANK_OF_OTHERS or other.ranks[0] != chosen.ranks[0]:
        return False
    return any(not torch.equal(value, other.state.get(key, value)) for key, value in chosen.state.items())


def _describe_load(chosen: _Match, others: list[_Match], content: object, own: State) -> str:
    """Return what was done to load the chosen weights, in one sentence; "" for nothing that needs saying."""
    parts = [f"weights taken from {' / '.join(map(repr, chosen.place))}"] if chosen.place else []
    if any(_rank_name(name) == RANK_OF_OTHERS + 1 for name in (*chosen.place, *chosen.prefix.split("."))):
        parts.append("an average over training")
    parts += [f"prefix {chosen.prefix!r} removed"] if chosen.prefix else []
    parts += [f"{', '.join(chosen.wrappers)} removed from keys"] if chosen.wrappers else []
    parts += [f"prefix {chosen.wrapper!r} added"] if chosen.wrapper else []
    if narrow := sorted({value.dtype for key, value in chosen.state.items() if value.itemsize < own[key].itemsize}, key=str):
        parts.append(f"{', '.join(str(dtype).removeprefix('torch.') for dtype in narrow)} widened")
    parts += [f"{_list_keys(chosen.unread)} not read"] if chosen.unread else []
    parts += [f"{_list_keys(chosen.uncounted)} missing, which evaluation does not read"] if chosen.uncounted else []
    if classes := sorted(_list_classes(content)):
        parts.append(f"objects of {', '.join(classes[:MAX_NAMED])} not loaded")
    parts += [f"the weights {others[0].describe_place()} fit too and are not used"] if others else []
    return "; ".join(parts)


def _list_keys(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f"{', '.join(keys[:MAX_NAMED])}{more}"


def _list_classes(content: object) -> Iterator[str]:
    """Yield the names of the classes whose objects stand at the top of a checkpoint."""
    values = content.values() if isinstance(content, Mapping) else (content,)
    yield from {value.class_name for value in values if isinstance(value, Unread)}


def _explain_misfit(matches: list[_Match], content: object, path: Path) -> ConfigError:
    """Return the error for a checkpoint in which nothing fits the network."""
    place = _find_module(content)
    if place is not None:
        entry = "".join(f"[{key!r}]" for key in place)
        load = f"net = torch.load({path.name!r}, weights_only=False){entry}"
        remedy = f"import torch; {load}; torch.save(net.state_dict(), '{path.stem}-state.pt')"
        under = f" under {' / '.join(map(repr, place))}" if place else ""
        subject = f"{path}: holds a whole module{under}, Python objects that would run code when loaded"
        return ConfigError(f"{subject}; where you trust the file save its state dict: {remedy}")
    best = max(matches, key=lambda match: (len(match.state) - len(match.wrong), -len(match.unknown)), default=None)
    if best is None:
        if next(_list_classes(content), None) is not None:
            return ConfigError(refuse_objects(path))
        return ConfigError(f"{path}: not a state dict; save torch.save(model.state_dict(), …)")
    if any(f"{_dense_layer_of(key)}.weight" in best.missing for key in best.unknown):
        return ConfigError(f"{path}: holds the weights of an already decomposed model; give those of the dense model")
    where = f" {best.describe_place()}" if best.place or best.prefix else ""
    remedy = "give the checkpoint of this very network"
    if re.search(r"-\d+-of-\d+$", path.stem):
        remedy = "it is one shard of several: give the .index.json beside it"
    elif best.wrong and not best.missing and not best.unknown:
        remedy = f"let model() build a network of these sizes, or {remedy}"
    return ConfigError(f"{path}: does not fit the model{where}: {describe_misfit(best.wrong, best.missing, best.unknown)}; {remedy}")


def _find_module(content: object, place: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Return the keys that lead to a pickled network in a checkpoint; None where it holds none."""
    if isinstance(content, Unread):
        state: Any = content.state
        return place if isinstance(state, Mapping) and "_parameters" in state and "_modules" in state else None
    if not isinstance(content, Mapping) or len(place) > MAX_DEPTH:
        return None
    found = (_find_module(value, (*place, key)) for key, value in content.items() if isinstance(key, str))
    return next((each for each in found if each is not None), None)


def _dense_layer_of(key: str) -> str:
    """Return the dense layer that a factor's key belongs to: `layer1.conv1` for `layer1.conv1.core.weight`."""
    return key.rpartition(".")[0].rpartition(".")[0]
