"""The help of every command: one sentence or two, and an example that can be run."""

from typing import Final, NamedTuple


class CommandHelp(NamedTuple):
    """The help of a command; the first sentence of the text stands in the list of commands."""

    text: str
    example: str


COMMAND_HELP: Final = {
    "init": CommandHelp(
        "Write the recipe of a network, and check it. Without NETWORK it asks, where a terminal is.",
        "edgecompress init net.py:make --shape 1x3x224x224 --data images",
    ),
    "check": CommandHelp(
        "Say in seconds what a run would stumble over. The network is run a few times on its example and its data, and exported once.",
        "edgecompress check examples/resnet20_fashion_mnist",
    ),
    "analyze": CommandHelp(
        "Count and time every layer.",
        "edgecompress analyze examples/resnet20_fashion_mnist",
    ),
    "plan": CommandHelp(
        "Choose a form and rank for each layer, and say why.",
        "edgecompress plan runs/resnet20_fashion_mnist --macs-ratio 0.5",
    ),
    "decompose": CommandHelp(
        "Replace the planned layers by their factors.",
        "edgecompress decompose runs/resnet20_fashion_mnist",
    ),
    "finetune": CommandHelp(
        "Recover accuracy by training. BatchNorm is re-estimated, then the network is distilled from the dense one.",
        "edgecompress finetune runs/resnet20_fashion_mnist --epochs 10",
    ),
    "quantize": CommandHelp(
        "Calibrate, and show how well each layer fits int8.",
        "edgecompress quantize runs/resnet20 --calibration-samples 200",
    ),
    "qat": CommandHelp(
        "Train the weights of int8-static files under rounding. Later exports of the run use the trained weights.",
        "edgecompress qat runs/resnet20_fashion_mnist --qat-epochs 2",
    ),
    "export": CommandHelp(
        "Run every missing step; publish verified artifacts.",
        "edgecompress export --target android",
    ),
    "profile": CommandHelp(
        "Measure the latencies of layers on a device. They are measured dense and in every form that a plan may choose, for later plans.",
        "edgecompress profile runs/resnet20_fashion_mnist --device adb://SERIAL",
    ),
    "search": CommandHelp(
        "Find the Pareto front of accuracy, latency and size. Each trial is a run with other budgets, methods and schemes.",
        "edgecompress search examples/resnet20_fashion_mnist --trials 12",
    ),
    "verify": CommandHelp(
        "Check artifacts again: hashes and outputs.",
        "edgecompress verify examples/prebuilt",
    ),
    "bench": CommandHelp(
        "Measure the latency of artifacts on a device.",
        "edgecompress bench runs/resnet20_fashion_mnist --device ssh://pi@raspberrypi.local",
    ),
    "report": CommandHelp(
        "Write report.html and report.json of a run.",
        "edgecompress report runs/resnet20_fashion_mnist --open",
    ),
    "devices": CommandHelp(
        "List the devices at hand: this machine, adb, inventory.",
        "edgecompress devices",
    ),
    "targets": CommandHelp(
        "List the presets of `export --target`.",
        "edgecompress targets",
    ),
    "inspect": CommandHelp(
        "Look into a model file: ops, shapes, quantization.",
        "edgecompress inspect examples/prebuilt/resnet20_fashion_mnist-int8-static.tflite",
    ),
    "evaluate": CommandHelp(
        "Measure the accuracy of artifacts on a device. Their outputs are also compared with those on this machine.",
        "edgecompress evaluate runs/resnet20 --device adb://SERIAL",
    ),
}
