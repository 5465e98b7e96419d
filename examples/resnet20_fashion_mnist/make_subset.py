"""Write the subset in `data/`: the first 10,000 training and 5,000 test images of Fashion-MNIST, unchanged.

Needs Debian's package `dataset-fashion-mnist`. The originals are in random order, so the first images are a fair sample.
"""

from pathlib import Path

from edgecompress.data import idx

FULL_SET = Path("/usr/share/datasets/fashion-mnist")
SIZES = {"train": 10_000, "eval": 5_000}


def main() -> None:
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for split, size in SIZES.items():
        images, labels = idx.read_split(FULL_SET, split)
        idx.write_idx(folder / f"{idx.SPLITS[split]}-images-idx3-ubyte.gz", images[:size])
        idx.write_idx(folder / f"{idx.SPLITS[split]}-labels-idx1-ubyte.gz", labels[:size])
        print(f"{split}: {size} of {len(images)} images")


if __name__ == "__main__":
    main()
