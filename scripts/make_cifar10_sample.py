#!/usr/bin/env python
"""Make the CIFAR-10 sample that ships in the package.

1,000 training and 1,000 test images, 100 of each class, in the Hub's parquet layout. They are chosen by a seeded hash
and stored as lossless PNG; `img.path` holds the number of each image in its official split. Run again on the same
data, it writes the same files.

    python scripts/make_cifar10_sample.py [--data_dir CIFAR10] [--output_dir hf_compress/data/cifar10_sample]
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_compress.tasks import TaskSpec, cifar10, load_task
from hf_compress.tasks.examples import ImageExamples
from hf_compress.tasks.selection import take


FEATURES = {"img": {"_type": "Image"}, "label": {"names": list(cifar10.LABELS), "_type": "ClassLabel"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="a copy of CIFAR-10; by default it is looked up as in a recipe")
    parser.add_argument("--output_dir", type=Path, default=cifar10.SAMPLE)
    parser.add_argument("--examples", type=int, default=1000, help="of each split")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    splits = load_task(TaskSpec("cifar10", data_dir=arguments.data_dir)).read()
    folder = arguments.output_dir / cifar10.HUB_CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        rows = take(np.arange(len(examples.labels)), arguments.examples, arguments.seed, examples.labels)
        path = folder / f"{split}-00000-of-00001.parquet"
        write(path, examples, rows)
        print(f"{path}: {len(rows)} images, {path.stat().st_size / 1e6:.2f} MB")


def write(path: Path, examples: ImageExamples, rows: np.ndarray) -> None:
    """Write the images `rows`, whole or not at all."""
    images = [{"bytes": png(examples.pixels[row].permute(1, 2, 0).numpy()), "path": f"{row:05d}.png"} for row in rows]
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}, metadata=metadata
    )
    table = pa.Table.from_pydict({"img": images, "label": examples.labels[rows]}, schema=schema)
    aside = path.with_suffix(".partial")
    # PNG does not compress further; checksums let a reader tell a damaged file
    pq.write_table(table, aside, compression="none", use_dictionary=False, write_page_checksum=True)
    os.replace(aside, path)


def png(pixels: np.ndarray) -> bytes:
    """Encode `uint8` (height, width, 3) as the smallest PNG that Pillow makes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
