"""The shapes of a network's inputs as people write them behind a source: `@1x3x224x224`, several with commas."""

from typing import Final

from edgecompress.errors import ConfigError

Sizes = tuple[tuple[int, ...], ...]

SHAPE_LIST: Final = r"\d+(?:x\d+)*(?:,\d+(?:x\d+)*)*"
SHAPES: Final = rf"(?:@(?P<shapes>{SHAPE_LIST}))?"  # at the end of a source; the batch is the first axis of each


class UnknownShapeError(ConfigError):
    """Nothing tells the shape of a network's input."""

    def __init__(self, target: str, name: str = "the input", example: str = "1x3x224x224") -> None:
        super().__init__(f"{target}: the shape of {name} is not known; add it, e.g. {target}@{example}")
        self.example = example


def read_sizes(shapes: str | None) -> Sizes:
    """Return the shapes in a text that matches SHAPE_LIST; () for none."""
    return tuple(tuple(map(int, shape.split("x"))) for shape in shapes.split(",")) if shapes else ()
