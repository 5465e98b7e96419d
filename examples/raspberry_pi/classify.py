"""Name what is in an image: `python classify.py MODEL.tflite IMAGE…`. Reads MODEL.tflite.json, the manifest that edgecompress wrote."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # its predecessor
    from tflite_runtime.interpreter import Interpreter

if len(sys.argv) < 3:
    sys.exit("usage: python classify.py MODEL.tflite IMAGE…")
manifest = json.loads(Path(f"{sys.argv[1]}.json").read_text(encoding="utf-8"))
spec, labels, prep = manifest["inputs"][0], manifest["labels"], manifest["preprocessing"] or {"mean": [0], "std": [1]}
channels = spec["shape"][-1 if spec["layout"] == "NHWC" else 1]
model = Interpreter(sys.argv[1])
model.allocate_tensors()
source, sink = model.get_input_details()[0], model.get_output_details()[0]

for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # grey of 16 bits, which convert() would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if size := prep.get("resize"):  # the short side
        scale = size / min(image.size)
        image = image.resize((max(size, int(image.width * scale)), max(size, int(image.height * scale))), Image.Resampling.BILINEAR)
    if side := prep.get("crop"):  # the centre
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    x = (np.asarray(image, np.float32).reshape(image.height, image.width, channels) / 255 - np.float32(prep["mean"])) / np.float32(
        prep["std"]
    )
    x = (x if spec["layout"] == "NHWC" else x.transpose(2, 0, 1))[None]
    if spec["scale"]:  # quantized input
        limits = np.iinfo(spec["dtype"])
        x = np.clip(np.rint(x / spec["scale"]) + spec["zero_point"], limits.min, limits.max)
    model.set_tensor(source["index"], x.astype(spec["dtype"]))
    model.invoke()
    scale, zero_point = sink["quantization"]  # (0, 0) for float
    logits = (model.get_tensor(sink["index"]).astype(np.float32).ravel() - zero_point) * (scale or 1)
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(scores.argmax())
    print(f"{path}: {labels[best] if labels else f'class {best}'} {scores[best]:.3f}")
