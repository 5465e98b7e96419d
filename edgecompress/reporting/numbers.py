"""Numbers as people read them: three significant digits, SI units, a true minus sign, an en dash for what is not known."""

import math

NOTHING = "–"


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, as an exponent only below 0.0001; whole digits are never rounded away."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return minus(f"{mantissa}e{int(exponent)}")
    power = math.floor(math.log10(abs(float(f"{value:.{digits}g}"))))  # rounded first: 0.9999 is written 1.00
    return minus(f"{value:,.{max(digits - 1 - power, 0)}f}")


def scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """Return `value` in the largest unit in which it is written as 1 or more."""
    for size, unit in steps:
        if abs(value) >= 0.9995 * size:
            return f"{significant(value / size)} {unit}".rstrip()
    return f"{value:.0f} {steps[-1][1]}".rstrip()


def size(value: float | None) -> str:
    """Return bytes as B, kB, MB or GB (powers of 1000)."""
    return NOTHING if value is None else scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def count(value: float | None) -> str:
    """Return a number of parameters or multiply-adds, e.g. `41.1 M`."""
    return NOTHING if value is None else scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))


def ms(value: float | None) -> str:
    return NOTHING if value is None else significant(value)


def times(value: float | None) -> str:
    """Return a factor such as `4.2×`; below 10 with two digits, above without a misleading third."""
    if value is None:
        return NOTHING
    return f"{value:.0f}×" if value >= 20 else f"{value:.1f}×" if value >= 1 else f"{value:.2f}×"


def grown(change: float, better: str, worse: str) -> tuple[str, str]:
    """Return e.g. `("4.2×", "faster")`, `("1.3×", "slower")`, or `("", "no faster")` when it rounds to one."""
    if round(max(change, 1 / change), 1) == 1:
        return "", f"no {better}"
    return (times(change), better) if change > 1 else (times(1 / change), worse)


def ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}".rstrip("0").ljust(4, "0")


def percent(value: float | None) -> str:
    """Return a fraction such as top-1 as `91.94%`."""
    return NOTHING if value is None else "100%" if value == 1 else f"{100 * value:.2f}%"


def points(value: float | None) -> str:
    """Return a signed change in percentage points, `±0.00` for none."""
    if value is None:
        return NOTHING
    return "±0.00" if abs(value) < 0.005 else minus(f"{value:+.2f}")


def decibel(value: float | None) -> str:
    return NOTHING if value is None else minus(f"{value:.1f}")


def error(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}" if value >= 0.01 or value == 0 else significant(value, 2)


def minus(text: str) -> str:
    return text.replace("-", "−")
