"""Small copies of the data sets, in every form that they are found in."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_compress.tasks import cifar10, glue


SIZES = {"train": 40, "test": 20}


def cifar_arrays(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random images sorted by class, as image folders give them back: `uint8` (N, 3, 32, 32) and labels."""
    generator = np.random.default_rng(seed)
    return {
        split: (generator.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8), np.repeat(np.arange(10), size // 10))
        for split, size in SIZES.items()
    }


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_cifar_parquet(folder: Path, arrays, names=cifar10.LABELS, shards: int = 1) -> None:
    """The Hub's layout; with other `names`, labels are numbered in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {"img": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}, metadata=metadata
    )
    for split, (pixels, labels) in arrays.items():
        labels = [list(names).index(cifar10.LABELS[label]) for label in labels]
        images = [{"bytes": encode(image), "path": None} for image in pixels]
        for shard, rows in enumerate(np.array_split(np.arange(len(labels)), shards)):
            table = pa.Table.from_pydict(
                {"img": [images[row] for row in rows], "label": [labels[row] for row in rows]}, schema=schema
            )
            pq.write_table(
                table,
                folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet",
                compression="none",
                write_page_checksum=True,
            )


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, which is how the official files were written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch_files(arrays) -> dict[str, bytes]:
    """The six files of the official archive."""
    files = {}
    for split, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
        pixels, labels = arrays[split]
        for name, rows in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            batch = {
                b"batch_label": name.encode(),
                b"labels": [int(label) for label in labels[rows]],
                b"data": pixels[rows].reshape(len(rows), -1),
                b"filenames": [b"image.png"] * len(rows),
            }
            files[name] = python2_pickle(batch)
    return files


def write_batches(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "readme.html": b"hello"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_image_folders(folder: Path, arrays, kind: str = "PNG") -> None:
    for split, (pixels, labels) in arrays.items():
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / split / cifar10.LABELS[label] / f"{index:04d}.{'jpg' if kind == 'JPEG' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, kind))


TRICKY = [
    'He said " the pie " is good .',
    "a \u2028 line separator and a \x85 next line",
    "trailing space ",
    "naïve café — 100 €",
    "a 'quoted' \"start",
    '" opening quote only',
]


def glue_examples(subset: glue.Subset, seed: int = 0) -> dict[str, dict[str, list]]:
    """Columns and labels of each split that is used, and of an unlabelled test split."""
    generator = np.random.default_rng(seed)
    splits = {}
    for split in (*subset.sizes, "test"):
        count = 24 if split == "train" else 8
        columns = {
            name: [f"{split} {name} {row} {TRICKY[(row + place) % len(TRICKY)]}" for row in range(count)]
            for place, name in enumerate(subset.columns)
        }
        if subset.labels:
            labels = [int(label) for label in generator.permutation(np.arange(count) % len(subset.labels))]
        else:
            labels = [float(np.float32(score)) for score in np.round(generator.uniform(0, 5, count), 3)]
        splits[split] = {**columns, "label": labels if split != "test" else [-1] * count}
    return splits


def write_glue_parquet(folder: Path, subset: glue.Subset, splits) -> None:
    folder.mkdir(parents=True)
    kind = pa.int64() if subset.labels else pa.float32()
    schema = pa.schema({**{name: pa.string() for name in subset.columns}, "label": kind})
    for split, columns in splits.items():
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), folder / f"{split}-00000-of-00001.parquet")


_HEADERS = {
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
_NAMED = ("mnli", "qnli", "rte")


def glue_files(subset: glue.Subset, splits) -> dict[str, bytes]:
    """The files of the original folder, as GLUE wrote them."""
    files = {}
    for split, columns in splits.items():
        if split == "test":
            continue
        *texts, labels = columns.values()
        labels = [subset.labels[label] if subset.name in _NAMED else f"{label}" for label in labels]
        lines = [] if subset.name == "cola" else [_HEADERS[subset.name]]
        for row, (*fields, label) in enumerate(zip(*texts, labels, strict=True)):
            lines.append(_line(subset.name, row, fields, label))
        text = "\n".join(lines) + ("\n" if split == "train" else "")  # real files differ in this
        bom = "\ufeff" if subset.name == "mrpc" else ""
        files[f"{split.replace('validation', 'dev')}.tsv"] = (bom + text).encode()
    return files


def _line(name: str, row: int, texts: list[str], label: str) -> str:
    if name == "cola":
        return f"gj04\t{label}\t{'*' if label == '0' else ''}\t{texts[0]}"
    if name == "mrpc":
        return "\t".join([label, str(1000 + row), str(2000 + row), *texts])
    # MNLI has the label of one annotator before the gold one
    labels = ["neutral", label] if name == "mnli" else [label]
    before = len(_HEADERS[name].split("\t")) - len(texts) - len(labels)
    return "\t".join([str(row)] * before + texts + labels)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
