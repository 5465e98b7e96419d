"""Numbers as people read them, in the terminal and in the report alike: one number is written in one way wherever it stands.

Measured values have three significant digits, counts and sizes SI units of powers of 1000 and no decimals below 1000; a minus is a true
minus sign and an unknown number an en dash. Only the standard library is imported here, since the command line starts with this module.
"""

import math
from collections.abc import Iterable

UNKNOWN = "–"
NOT_FINITE = "not finite"
COUNT_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))
SIZE_UNITS = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def format_significant(value: float | None, digits: int = 3) -> str:
    """Return a loss, a learning rate or another plain number with `digits` significant digits.

    Whole digits are never rounded away, and an exponent is used only below 0.0001.
    """
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.{min(digits, 2) - 1}e}".partition("e")
        return use_minus_sign(f"{mantissa}e{int(exponent)}")
    power = math.floor(math.log10(abs(float(f"{value:.{digits}g}"))))  # rounded first: 0.9999 is written 1.00
    return use_minus_sign(f"{value:,.{max(digits - 1 - power, 0)}f}")


def format_size(value: float | None) -> str:
    """Return bytes in decimal units, as files are sold: `850 B`, `1.09 MB`."""
    return _format_scaled(value, SIZE_UNITS, " B")


def format_count(value: float | None) -> str:
    """Return a number of parameters or multiply-adds: `640`, `41.1 M`."""
    return _format_scaled(value, COUNT_UNITS, "")


def format_whole(value: int | None) -> str:
    """Return a number of samples or bytes in full, with commas: `10,000`."""
    return UNKNOWN if value is None else use_minus_sign(f"{value:,}")


def format_ms(value: float | None) -> str:
    """Return milliseconds without their unit: `0.0412`, `3.10`, `1,234`."""
    return format_significant(value)


def format_seconds(value: float | None) -> str:
    """Return seconds without their unit: `12.3`."""
    return _format_fixed(value, 1)


def format_factor(value: float | None) -> str:
    """Return how many times something is faster or smaller: `0.85×`, `4.2×`, `31×`, without digits that mislead."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return f"{value:,.0f}×" if value >= 20 else f"{value:.1f}×" if value >= 1 else f"{value:.2f}×"


def format_factors(low: float, high: float) -> str:
    """Return the interval of a factor, finer than the factor itself since it may be narrow: `1.98–2.03×`."""
    return f"{low:.2f}–{high:.2f}×"


def describe_change(factor: float, better: str, worse: str) -> tuple[str, str]:
    """Return e.g. `("4.2×", "faster")`, `("1.3×", "slower")`, or `("", "no faster")` for a factor that rounds to one."""
    if round(max(factor, 1 / factor), 1) == 1:
        return "", f"no {better}"
    return (format_factor(factor), better) if factor > 1 else (format_factor(1 / factor), worse)


def format_ratio(value: float | None) -> str:
    """Return after over before with three decimals, a third one only where it is not zero: `0.50`, `0.487`."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return f"{value:.3f}".removesuffix("0")


def format_percent(value: float | None) -> str:
    """Return a fraction such as top-1 or an agreement: `91.94%`; `100%` only where it is all of them."""
    return "100%" if value == 1 else _format_fixed(None if value is None else 100 * value, 2, "%")


def format_share(value: float | None) -> str:
    """Return how much of a total something takes, where less than a percent matters little: `12.5%`."""
    return _format_fixed(None if value is None else 100 * value, 1, "%")


def format_points(value: float | None) -> str:
    """Return a change in percentage points, after − before, with its sign; `±0.00` for none."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return "±0.00" if abs(value) < 0.005 else use_minus_sign(f"{value:+.2f}")


def format_db(value: float | None) -> str:
    """Return decibels without their unit: `38.2`."""
    return _format_fixed(value, 1)


def format_error(value: float | None) -> str:
    """Return a relative error: `0.123`, and below 0.01 two significant digits, `2.0e−7`."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return f"{value:.3f}" if value >= 0.01 or value == 0 else format_significant(value, 2)


def format_loss_change(value: float | None) -> str:
    """Return a change of a loss with its sign: `+0.012`, `−3.1e−5`."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return ("−" if value < 0 else "+") + format_error(abs(value))


def format_celsius(value: float | None) -> str:
    """Return a temperature without its unit: `41.5`."""
    return _format_fixed(value, 1)


def format_exact(value: float) -> str:
    """Return a number that somebody gave, such as a mean of the preprocessing, as it was given: `0.286`."""
    return use_minus_sign(f"{value:g}")


def format_shape(sizes: Iterable[int]) -> str:
    """Return the sizes of a tensor, or the ranks of a layer: `64×64×3×3`."""
    return "×".join(map(str, sizes)) or UNKNOWN


def use_minus_sign(text: str) -> str:
    """Return a number's text with a true minus sign, as wide as a plus, for each hyphen."""
    return text.replace("-", "−")


def _format_scaled(value: float | None, units: tuple[tuple[float, str], ...], unit_of_one: str) -> str:
    """Return `value` in the largest unit in which it is written as 1 or more."""
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    for size, unit in units:
        if abs(value) >= 0.9995 * size:
            return format_significant(value / size) + unit
    return use_minus_sign(f"{value:.0f}") + unit_of_one


def _format_fixed(value: float | None, decimals: int, unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return _format_unusual(value)
    return use_minus_sign(f"{value:.{decimals}f}") + unit


def _format_unusual(value: float | None) -> str:
    return UNKNOWN if value is None else NOT_FINITE


def format_metric(value: float | None, *, is_accuracy: bool) -> str:
    """Return the value of a metric: an accuracy in percent, another in its own unit."""
    return format_percent(value) if is_accuracy else format_significant(value, 4)


def format_metric_change(change: float | None, *, is_accuracy: bool) -> str:
    """Return a change in points of an accuracy or percent of another metric: `−0.48`, `−23.80%`; a loss is negative, everywhere."""
    text = format_points(change)
    return text if is_accuracy or text in {UNKNOWN, NOT_FINITE} else f"{text}%"
