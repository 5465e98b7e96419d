"""Networks as people have them, each the text of a recipe, with what the probe says of it."""

from typing import NamedTuple

from support.other_recipes import AUXILIARY, data


class Network(NamedTuple):
    """A recipe, and what `check` says of it.

    Attributes:
        text: Of the recipe below its imports.
        says: A regular expression that the findings, a line each, contain; "" for no findings at all.
        is_refused: Whether one of them is an error.
    """

    text: str
    says: str = ""
    is_refused: bool = False


USUAL = "self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)"
RECIPE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {modules}

    def forward(self, x{more_inputs}):
        {forward}


def model():
    torch.manual_seed(0)
    return {model}


def example_inputs():
    return {example}

"""


def write(
    forward="return self.fc(self.conv(x).mean((2, 3)))",
    modules=USUAL,
    *,
    model="Net()",
    example="(torch.zeros(1, 3, 8, 8),)",
    more_inputs="",
    more="",
):
    return RECIPE.format(forward=forward, modules=modules, model=model, example=example, more_inputs=more_inputs) + more


def stack(layers, example="(torch.zeros(1, 3, 8, 8),)", more=""):
    return write(model=f"nn.Sequential({layers})", example=example, more=more)


CONV = "nn.Conv2d(3, 4, 3, padding=1)"
LABELLED = data("train_data", "eval_data", inputs="3, 8, 8", targets="torch.arange(96) % 3")
IN_BYTES = LABELLED.replace("TensorDataset(x,", "TensorDataset((x * 40 + 128).clamp(0, 255).round(),")
METRIC = "\n\ndef metric(outputs, targets):\n    return {value}\n"
LOSS = "\n\ndef loss(outputs, targets):\n    return {value}\n"
TOKENS = "(torch.arange(6)[None],)"
INDICES = "\n\ndef eval_data():\n    return TensorDataset(torch.arange(96 * 6).reshape(96, 6) % {rows})\n"
HELD = "\n        self.{name} = {value}"

NETWORKS = {
    # Kinds of networks that pass without a word, or with a note on what is done.
    "classifier": Network(write(more=LABELLED)),
    "video": Network(stack("nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU()", "(torch.zeros(1, 3, 4, 8, 8),)")),
    "tokens": Network(stack("nn.Embedding(9, 4), nn.Linear(4, 2)", TOKENS, INDICES.format(rows=9))),
    "two inputs, a dict of outputs": Network(
        write(
            'return {"scores": self.fc(self.conv(x).mean((2, 3))), "map": self.conv(x + y)}',
            more_inputs=", y",
            example="(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))",
        )
    ),
    "an optional input": Network(write(more_inputs=", mask=None")),
    "an example that is no tuple": Network(write(example="torch.zeros(1, 3, 8, 8)")),
    "a number from a constant": Network(
        write(
            "return F.interpolate(self.conv(x), scale_factor=self.scales.tolist()[2:])",
            f"{USUAL}{HELD}".format(name="scales", value="nn.Buffer(torch.tensor([1.0, 1.0, 2.0, 2.0]))"),
        )
    ),
    "a buffer of stride zero": Network(
        write("return self.conv(x) / self.six", f"{USUAL}{HELD}".format(name="six", value="nn.Buffer(torch.tensor(6.0).expand(1))"))
    ),
    "data-parallel": Network(write(model="nn.DataParallel(Net())")),
    "parametrized": Network(stack(f"nn.utils.parametrizations.weight_norm({CONV}), nn.ReLU()")),
    "frozen": Network(write(model="Net().requires_grad_(False)"), "note: 4 of 4 parameters are frozen .* trained in a copy"),
    "one module under two names": Network(
        write("return self.again(self.conv(x))", "self.conv = nn.Conv2d(3, 3, 1)\n        self.again = self.conv"),
        "note: again is conv: one module under two names, compressed once under both",
    ),
    "layers in a list": Network(
        write("return self.blocks[0](x)", f"self.blocks = [{CONV}]"),
        r"warning: blocks\[0\] \(Conv2d\): not registered; 100.0% of the MACs.*; keep them in nn.ModuleList",
    ),
    "recurrent": Network(
        stack(
            "nn.GRU(8, 4, batch_first=True), Last()",
            "(torch.zeros(1, 5, 8),)",
            "class Last(nn.Module):\n    forward = lambda self, y: y[0]",
        ),
        r"note: 100\.0% of the MACs are done with weights of no Linear or convolution, which stay as they are: 0\.weight_",
    ),
    "an example of five": Network(write(example="torch.zeros(5, 3, 8, 8)"), "note: the example has 5 samples; files take one"),
    "heads of training": Network(
        AUXILIARY["a tuple in training"], "note: in training mode it returns other outputs: it is trained on what it returns in eval mode"
    ),
    "targets in training": Network(
        write(
            "assert targets is not None or not self.training\n        return self.fc(self.conv(x).mean((2, 3)))",
            more_inputs=", targets=None",
            more=LABELLED,
        ),
        r"note: in training mode it asks for targets \(AssertionError\) and returns no outputs: it is trained on what it returns in eval",
    ),
    "losses in training": Network(
        write('y = self.fc(self.conv(x).mean((2, 3)))\n        return {"loss": y.sum()} if self.training else y', more=LABELLED),
        "note: in training mode it returns other outputs",
    ),
    "a dropout that is never trained": Network(stack(f"{CONV}, nn.Dropout()")),
    # What a run would stumble over, refused with its cause and one remedy.
    "half precision": Network(
        write(model="Net().half()"), r"error: .*conv\.weight is float16; give the model in float32, model\.float\(\)", True
    ),
    "bfloat16": Network(write(model="Net().bfloat16()"), r"error: .*conv\.weight is bfloat16; .*model\.float\(\)", True),
    "complex weights": Network(stack("nn.Linear(8, 4, dtype=torch.complex64)"), r"error: .*0\.weight is complex64; ", True),
    "a half example": Network(
        write(example="(torch.zeros(1, 3, 8, 8).half(),)"), r"error: example input 0 is float16; .*x\.float\(\)", True
    ),
    "a state dict": Network(
        write(model="Net().state_dict()"), r"error: .*model\(\) returned OrderedDict; return a torch\.nn\.Module", True
    ),
    "TorchScript": Network(
        write(model="torch.jit.trace(Net(), torch.zeros(1, 3, 8, 8))"),
        "error: .*the model is a TorchScript module; return .* made from",
        True,
    ),
    "without values": Network(
        stack('nn.Linear(8, 4, device="meta")'), r"error: .*0\.weight is on the meta device, .*; load the weights", True
    ),
    "a lazy layer": Network(
        stack(f"{CONV}, nn.Flatten(), nn.LazyLinear(3)"), r"error: .*2\.weight has no shape yet, a lazy layer's; run the", True
    ),
    "not a number": Network(
        write(
            model="nn.Sequential(spoil(nn.Linear(8, 4)))",
            more="def spoil(layer):\n    nn.init.constant_(layer.bias, float('nan'))\n    return layer",
        ),
        r"error: .*weight 0\.bias holds NaN or infinity; retrain or repair",
        True,
    ),
    "pruned": Network(
        write(model="nn.Sequential(prune.l1_unstructured(nn.Linear(8, 4), 'weight', 0.5))", more="from torch.nn.utils import prune"),
        r"error: .*cannot be copied: weights are computed by hooks, .*; let model\(\) make plain weights of them",
        True,
    ),
    "a lock in a module": Network(
        write(modules=f"{USUAL}\n        self.lock = __import__('threading').Lock()"),
        "error: .*cannot be copied: cannot pickle '_thread.lock' object; keep locks, files and other handles out of its modules",
        True,
    ),
    "random numbers": Network(
        write("return F.dropout(self.conv(x), 0.5)"),
        "error: two runs on one sample in eval mode differ; it draws random numbers; draw none where self.training is False",
        True,
    ),
    "a state between runs": Network(
        write(
            "self.seen += 1\n        return self.conv(x) * self.seen",
            f"{USUAL}{HELD}".format(name="seen", value="nn.Buffer(torch.zeros(1))"),
        ),
        r"error: two runs on one sample in eval mode differ, and each changes the buffer seen; write to it only where self\.training",
        True,
    ),
    "an input changed in place": Network(
        write("x -= 0.5\n        return self.conv(x)"),
        r"error: forward\(\) changes its input in place; compute on a copy, e\.g\. x = x - 1",
        True,
    ),
    "a batch of one": Network(
        write("return self.fc(self.conv(x).reshape(1, 64, 4))"),
        r"error: takes one sample at a time; on two it fails: .*recipe\.py:\d+: forward\(\) of Net .*; let forward take any number of",
        True,
    ),
    "statistics of the batch": Network(
        stack(f"{CONV}, nn.BatchNorm2d(4, track_running_stats=False)"),
        "error: two samples at once give other outputs than one by one, first in 1, a BatchNorm2d without running statistics; train it",
        True,
    ),
    "time first": Network(
        write("return self.lstm(x)[0][-1]", "self.lstm = nn.LSTM(8, 4)", example="torch.zeros(20, 1, 8)"),
        r"error: the first axis of the example inputs \(20, 1, 8\) is no batch: an output is \(1, 4\); axis 1 is the batch: build .* let "
        r"model\(\) return a module that calls it with x\.movedim\(0, 1\), and give example inputs of shape \(1, 20, 8\)",
        True,
    ),
    "time in the place of the batch": Network(
        write("return self.lstm(x)[0]", "self.lstm = nn.LSTM(8, 4)", example="torch.zeros(1, 5, 8)"),
        "error: two samples at once give other outputs than one by one, first in lstm, a LSTM whose second axis is the batch; build it",
        True,
    ),
    "a branch on values": Network(
        write("x = self.conv(x)\n        return x * 2 if x.mean() > 0.1 else x"),
        r"error: .*recipe\.py:\d+.*; replace the branch or index by torch\.where",
        True,
    ),
    "NumPy in forward": Network(write("return torch.from_numpy(self.conv(x).numpy())"), r"error: .*recipe\.py:\d+", True),
    "a scalar output": Network(
        write("return self.conv(x).sum()"), r"error: output 0 has shape \(\) for 1 samples; make axis 0 of each", True
    ),
    "text beside the outputs": Network(
        write('return {"y": self.conv(x), "name": "cat"}'), "error: output 1 is 'cat' and not a tensor; wrap the model", True
    ),
    "an example of another shape": Network(
        write(example="torch.zeros(1, 1, 8, 8)"),
        r"error: .*forward\(\) of Conv2d conv .* fails with RuntimeError: .*; give example_inputs",
        True,
    ),
    "inputs of several lengths": Network(
        write("return self.conv(x)[:, :, 0] + y[:, :4]", more_inputs=", y", example="(torch.zeros(1, 3, 8, 8), torch.zeros(5, 8, 8))"),
        r"error: the example inputs \(1, 3, 8, 8\), \(5, 8, 8\) differ in their first axis, which is the batch; make the batch",
        True,
    ),
    "an axis without a size": Network(
        write(example="torch.zeros(1, 3, 0, 8)"), r"error: .*an example input has shape \(1, 3, 0, 8\); .*give every size", True
    ),
    "too few inputs": Network(
        write("return self.conv(x) + y", more_inputs=", y"),
        r"error: .*missing 1 required .*'y'; give example_inputs\(\) .* as many inputs",
        True,
    ),
    "an index beyond its embedding": Network(
        stack("nn.Embedding(9, 4), nn.Linear(4, 2)", TOKENS, INDICES.format(rows=31)),
        r"error: 0: index \d+ in an embedding of 9 rows; give indices from 0 to 8",
        True,
    ),
    "a fault of training mode": Network(
        write('y = self.conv(x)\n        return y + {}["aux"] if self.training else y', more=LABELLED),
        r"error: .*recipe\.py:\d+: forward\(\) of Net in training mode .* fails with KeyError: 'aux'; mend it",
        True,
    ),
    "answers without scores": Network(
        write("return self.conv(x).argmax(1)", more=LABELLED),
        "error: .*all outputs are integers, which have no gradients; return the scores that they come from, or give --epochs 0",
        True,
    ),
    "answers, and nothing to train on": Network(write("return self.conv(x).argmax(1)")),
    "no gradients": Network(
        write("with torch.no_grad():\n            return self.conv(x)", more=LABELLED),
        r"error: .*no output has a gradient; leave torch\.no_grad\(\)",
        True,
    ),
    "other outputs whatever the mode": Network(
        write("y = self.conv(x)\n        return (y, y) if self.conv.training else y", more=LABELLED),
        "error: .*the network returns other outputs in training mode; let forward return those of eval mode",
        True,
    ),
    # Data that do not fit.
    "labels out of range": Network(
        write(more=LABELLED.replace("% 3", "% 5")),
        "error: the training data: labels from 0 to 4, the output has 3 classes; number the",
        True,
    ),
    "data of another shape": Network(
        write(more=LABELLED.replace("3, 8, 8", "3, 9, 8")), r"error: .*its shape is \(3, 9, 8\), the model's input is \(3, 8, 8\)", True
    ),
    "samples of NaN": Network(
        write(more=LABELLED.replace("TensorDataset(x,", "TensorDataset(x / 0 - x / 0,")),
        "error: .*samples hold NaN or infinity, first 0; ",
        True,
    ),
    "pixels that nobody scaled": Network(
        write(more=IN_BYTES),
        r"warning: the training data gives whole numbers from \d+ to \d+, as pixels before scaling; divide them by 255",
    ),
    "a DataLoader": Network(
        write(
            more=LABELLED.replace("return TensorDataset(", "return torch.utils.data.DataLoader(TensorDataset(").replace("% 3)", "% 3), 8)")
        )
    ),
    "a metric that is NaN": Network(
        write(more=LABELLED + METRIC.format(value='{"right": float("nan")}')),
        r"error: .*recipe\.py:\d+: metric\(\): right is nan; return finite numbers",
        True,
    ),
    "a metric that raises": Network(
        write(more=LABELLED + METRIC.format(value="outputs['scores']")), r"error: .*recipe\.py:\d+: metric\(\) fails with .*Error: ", True
    ),
    "a loss of many numbers": Network(
        write(more=LABELLED + LOSS.format(value="F.cross_entropy(outputs, targets, reduction='none')")),
        r"error: .*recipe\.py:\d+: loss\(\)",
        True,
    ),
    "a metric without targets": Network(
        write(more=data("train_data", "eval_data", inputs="3, 8, 8") + METRIC.format(value='{"right": 1.0}')),
        r"error: .*yields no targets, .*metric\(\) needs them; yield \(input, target\)",
        True,
    ),
}
