"""The command that writes the first recipe of a network, and probes it."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgecompress.cli.check import probe_recipe, show_findings
from edgecompress.errors import ConfigError
from edgecompress.files import write_atomically

if TYPE_CHECKING:
    from edgecompress.data.new_recipe import Draft
    from edgecompress.data.sources import Source

NETWORKS: Final = "FILE.py:FUNCTION, torchvision:NAME, timm:NAME, hf:FOLDER, FILE.onnx or FILE.pt2"

Network = Annotated[str | None, typer.Argument(metavar="NETWORK", help=f"{NETWORKS}; asked for without.", show_default=False)]
Shape = Annotated[
    str | None,
    typer.Option("--shape", metavar="SHAPE", help="Shape of the input, batch first: 1x3x224x224; several with commas.", show_default=False),
]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="Checkpoint of the network.", show_default=False)]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="Images in folders, an .npz, idx files or shards.", show_default=False)
]
To = Annotated[
    Path | None,
    typer.Option("--to", metavar="PATH", help="File or folder of the recipe [beside the network's file, or NAME].", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")]


def run_init(
    network: Network = None, shape: Shape = None, weights: Weights = None, data: Data = None, to: To = None, *, force: Force = False
) -> None:
    """Ask for what is missing, write the recipe, and print the findings of the probe; the exit status is 2 where one is an error."""
    if network is None:
        network = _ask("Network", NETWORKS, missing="init: no network is named; give NETWORK, e.g. net.py:make or torchvision:resnet18")
        weights = weights or _ask_path("Checkpoint of its weights")
        data = data or _ask_path("Data: a folder of images, an .npz, idx files or shards")
    path, text = _draft_recipe(network, shape, weights, data, to, force=force)
    write_atomically(path, text.encode())
    typer.echo(f"wrote {path}")
    show_findings(probe_recipe(str(path)))
    typer.echo(f"next: edgecompress export {path} --target raspberry-pi")


def _draft_recipe(
    network: str, shape: str | None, weights: Path | None, data: Path | None, to: Path | None, *, force: bool
) -> tuple[Path, str]:
    """Return the path and the text of a recipe; nothing is written.

    Raises:
        ConfigError: A path is missing, a recipe is there already, or the network cannot be made or run.
    """
    from edgecompress.data.new_recipe import choose_place, compose_recipe

    for flag, given in (("--weights", weights), ("--data", data)):
        if given is not None and not given.expanduser().exists():
            raise ConfigError(f"{given}: no such file or folder; correct {flag}")
    draft = _read_network(network, shape, _resolve(weights), _resolve(data))
    place = choose_place(draft.recipe) if to is None else to.expanduser()
    place = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    path = place if place.suffix == ".py" else place / "recipe.py"
    if draft.recipe.source.startswith(f"{path.resolve()}:"):
        raise ConfigError(f"{path}: is the file of the network; give another place with --to")
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; replace it with --force, or give another place with --to")
    return path, compose_recipe(draft, path.resolve().parent)


def _read_network(network: str, shape: str | None, weights: Path | None, data: Path | None) -> "Draft":
    """Return what can be known of a network: it is made, given its weights, and run once."""
    from edgecompress.data.new_recipe import FUNCTION_SOURCE, Draft, list_own_functions
    from edgecompress.data.recipe import load_recipe
    from edgecompress.faults.user_code import call_user_function
    from edgecompress.network.batches import output_names
    from edgecompress.network.checkpoints import load_checkpoint
    from edgecompress.network.weights import fingerprint

    source = _load_source(network, shape)
    recipe = load_recipe(source.text)
    model = call_user_function(recipe.model, "model()", recipe.source)
    if not hasattr(model, "state_dict"):
        raise ConfigError(f"{network}: returns {type(model).__name__}; name a function that returns a torch.nn.Module")
    is_function = FUNCTION_SOURCE.fullmatch(source.text) is not None
    is_random = is_function and weights is None and fingerprint(model) != fingerprint(recipe.model())
    if weights is not None:
        load_checkpoint(model, weights)
    first = next(iter(output_names(model.eval(), recipe.example_inputs)), "")
    return Draft(
        recipe,
        output="" if re.fullmatch(r"output_\d+", first) or "." in first else first,
        own=list_own_functions(vars(source.module)) if is_function else (),
        weights=weights,
        data=data,
        is_random=is_random,
    )


def _load_source(network: str, shape: str | None) -> "Source":
    """Return the source of a network; its shape is asked for where nothing tells it."""
    from edgecompress.data.shapes import SHAPE_LIST, UnknownShapeError
    from edgecompress.data.sources import LOADERS, load_source

    if shape is not None and not re.fullmatch(SHAPE_LIST, shape):
        raise ConfigError(f"--shape {shape}: is no shape; give sizes with x between, batch first, e.g. 1x3x224x224")
    target = network if shape is None else f"{network}@{shape}"
    if not any(re.fullmatch(form, target) for form in LOADERS):
        is_recipe = Path(network).suffix == ".py" and Path(network).is_file()
        remedy = f"name the function that makes the network, {network}:FUNCTION" if is_recipe else f"give {NETWORKS}"
        raise ConfigError(f"{target}: tells no network; {remedy}")
    try:
        return load_source(target)
    except UnknownShapeError as error:
        fact, _, _ = str(error).rpartition("; ")
        asked = _ask("Shape of the input, batch first", f"e.g. {error.example}", missing=f"{fact}; give --shape {error.example}")
        return _load_source(network, asked)


def _ask(question: str, hint: str, *, missing: str) -> str:
    """Return the answer of the person at the terminal.

    Raises:
        ConfigError: No terminal is there; `missing` is the message.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(missing)
    answer: str = typer.prompt(f"{question} ({hint})", err=True)
    return answer.strip()


def _ask_path(question: str) -> Path | None:
    answer: str = typer.prompt(f"{question} (a path, or nothing)", default="", show_default=False, err=True)
    return Path(answer.strip()) if answer.strip() else None


def _resolve(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().resolve()
