"""The factorization methods: one module each, with the functions of `Factorization`, and listed in `METHODS` under its name."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgecompress.errors import ConfigError
from edgecompress.factorizations.methods import (
    channel_svd,
    cp3,
    cp4,
    cp_epc,
    cp_quantized,
    grouped_svd,
    spatial_svd,
    svd,
    tensor_train,
    tucker2,
    tucker2_cp_epc,
)
from edgecompress.factorizations.protocol import Factorization

METHODS: Final[dict[str, Factorization[Any]]] = {
    "svd": svd,
    "spatial_svd": spatial_svd,
    "channel_svd": channel_svd,
    "grouped_svd": grouped_svd,
    "tucker2": tucker2,
    "cp3": cp3,
    "cp4": cp4,
    "cp_epc": cp_epc,
    "tucker2_cp_epc": tucker2_cp_epc,
    "cp_quantized": cp_quantized,
    "tensor_train": tensor_train,
}


def get_method(name: str) -> Factorization[Any]:
    """Return the factorization method of this name.

    Raises:
        ConfigError: No method has this name; the message lists those that exist.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]


def parse_options(method: str, given: Mapping[str, Any] | None = None) -> Any:
    """Return the `Options` of a method with the given values set and the others at their defaults.

    Raises:
        ConfigError: The method or an option is unknown, or a value has the wrong type.
    """
    kind = get_method(method).Options
    known = kind.__struct_fields__
    for name in given or {}:
        if name not in known:
            raise ConfigError(f"{method}: unknown option {name!r}; {'choose from ' + ', '.join(known) if known else 'it has none'}")
    try:
        return msgspec.convert(dict(given or {}), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{method}: {error}; its defaults are {kind()}") from error
