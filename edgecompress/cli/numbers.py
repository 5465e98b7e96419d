"""Numbers as people read them."""


def count(n: float) -> str:
    """272474 → 272 k, 31000000 → 31.0 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= limit:
            return f"{n / limit:.3g}{unit}"
    return f"{n:g}"


def percent(fraction: float | None) -> str:
    """0.9312 → 93.12%; None → –."""
    return "–" if fraction is None else f"{fraction:.2%}"


def size(n: int) -> str:
    """Bytes in decimal units, as files are sold: 1090000 → 1.09 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= limit:
            return f"{n / limit:.3g} {unit}"
    return f"{n} B"


def ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def rank(values: tuple[int, ...]) -> str:
    return "×".join(map(str, values)) or "–"
