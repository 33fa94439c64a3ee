from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_compress.errors import CompressionError, NotFoundError
from hf_compress.tasks import cifar10
from hf_compress.tasks.images import _decode

from . import sources


def read(place):
    reader = cifar10.find(place)
    assert reader is not None
    return reader()


def check(splits, arrays):
    for split, (pixels, labels) in arrays.items():
        assert splits[split].pixels.dtype == torch.uint8
        assert np.array_equal(splits[split].pixels.numpy(), pixels)
        assert np.array_equal(splits[split].labels, labels)


@pytest.fixture
def arrays():
    return sources.cifar_arrays()


def write(form: str, folder, arrays):
    """Write one form; returns the place that a user would name."""
    files = sources.batch_files(arrays)
    if form == "hub":
        sources.write_cifar_parquet(folder / "plain_text", arrays)
    elif form == "flat parquet":
        sources.write_cifar_parquet(folder, arrays)
    elif form == "shards":
        sources.write_cifar_parquet(folder / "plain_text", arrays, shards=3)
    elif form == "batches":
        sources.write_batches(folder, files)
    elif form == "unpacked":
        sources.write_batches(folder / "cifar-10-batches-py", files)
    elif form == "archive":
        sources.write_archive(folder / "anything.tar.gz", files)
        return folder / "anything.tar.gz"
    elif form == "folder of archive":
        sources.write_archive(folder / "cifar-10-python.tar.gz", files)
    elif form == "images":
        sources.write_image_folders(folder, arrays)
    return folder


FORMS = ["hub", "flat parquet", "shards", "batches", "unpacked", "archive", "folder of archive", "images"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path, arrays, form):
    folder = tmp_path if form != "batches" else tmp_path / "data"
    place = write(form, folder, arrays)
    before = sorted(tmp_path.rglob("*"))
    check(read(place), arrays)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the data


def test_jpeg_folders(tmp_path):
    flat = {
        split: (np.full((20, 3, 32, 32), 77, np.uint8), np.repeat(np.arange(10), 2)) for split in ("train", "test")
    }
    sources.write_image_folders(tmp_path, flat, "JPEG")
    splits = read(tmp_path)
    assert (splits["test"].pixels.float() - 77).abs().max() <= 2 and splits["train"].labels.tolist() == sorted(
        list(range(10)) * 2
    )


def test_files_of_another_label_order_are_renumbered(tmp_path, arrays):
    sources.write_cifar_parquet(tmp_path, arrays, names=cifar10.LABELS[::-1])
    assert pq.read_table(tmp_path / "test-00000-of-00001.parquet")["label"].to_pylist()[0] == 9
    check(read(tmp_path), arrays)


def test_large_sets_are_decoded_once(tmp_path, arrays, monkeypatch, cache_home):
    monkeypatch.setattr("hf_compress.tasks.images._WORTH_CACHING", 40)
    sources.write_cifar_parquet(tmp_path, arrays)
    check(read(tmp_path), arrays)
    assert len(list(cache_home.glob("images-*"))) == 2  # training images, and their lock
    monkeypatch.setattr("hf_compress.tasks.images._WORTH_CACHING", 21)
    opened = []
    monkeypatch.setattr(
        "hf_compress.tasks.images._decode", lambda *args, real=_decode: opened.append(1) or real(*args)
    )
    check(read(tmp_path), arrays)
    assert len(opened) == 1  # the test images alone


class Malicious:
    """Runs a command when unpickled by anyone who trusts it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(marker):
    command = f"touch {marker}"
    yield "os.system", pickle.dumps({b"data": Malicious(os.system, command), b"labels": []})
    yield "builtins.eval", pickle.dumps({b"data": Malicious(eval, f"open({str(marker)!r}, 'w')"), b"labels": []})
    yield "getattr", pickle.dumps({b"labels": [Malicious(getattr, int, "from_bytes")], b"data": None})
    yield "numpy.load", b"cnumpy\nload\n(S'x'\ntR."
    yield "numpy.ndarray.tofile", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    yield "posix", f"cposix\nsystem\n(S'{command}'\ntR.".encode()
    yield "instance", f"(S'{command}'\nios\nsystem\n.".encode()
    # an allowed helper, called for something else than an array
    yield "a plain array", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR."


@pytest.mark.parametrize("number", range(8))
def test_a_malicious_pickle_is_refused(tmp_path, arrays, number):
    marker = tmp_path / "run"
    _, content = list(payloads(marker))[number]
    files = sources.batch_files(arrays)
    sources.write_batches(tmp_path / "data", {**files, "data_batch_3": content})
    with pytest.raises(CompressionError, match="data_batch_3.*refused"):
        read(tmp_path / "data")
    sources.write_archive(tmp_path / "evil.tar.gz", {**files, "test_batch": content})
    with pytest.raises(CompressionError, match="evil.tar.gz/test_batch.*refused"):
        read(tmp_path / "evil.tar.gz")
    assert not marker.exists()


def test_the_payloads_do_run_where_pickles_are_trusted(tmp_path):
    marker = tmp_path / "run"
    pickle.loads(dict(payloads(marker))["os.system"])
    assert marker.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_batches_that_other_programs_wrote_again(tmp_path, arrays, protocol):
    files = sources.batch_files(arrays)
    if protocol in (3, 4):  # what Python 3 writes by default, or did
        pixels, labels = arrays["test"]
        batch = {"data": pixels.reshape(len(labels), -1), "labels": labels.tolist()}
        files["test_batch"] = pickle.dumps(batch, protocol=protocol)
    sources.write_batches(tmp_path / "data", files)
    check(read(tmp_path / "data"), arrays)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"fine_labels": [0], "data": np.zeros((1, 3072), np.uint8)}, "no 'labels'.*CIFAR-100"),
        ({"labels": [0], "data": np.zeros((1, 3073), np.uint8)}, "'data' is not"),
        ({"labels": [0], "data": np.zeros((1, 3072), np.float32)}, "'data' is not"),
        ({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)}, "'labels' is not"),
        ({"labels": [True], "data": np.zeros((1, 3072), np.uint8)}, "'labels' is not"),
        ({"labels": [10], "data": np.zeros((1, 3072), np.uint8)}, "label 10"),
        (["labels"], "no 'data'"),
    ],
)
def test_batches_of_another_content_are_refused(tmp_path, arrays, batch, message):
    files = sources.batch_files(arrays)
    sources.write_batches(tmp_path / "data", {**files, "test_batch": pickle.dumps(batch, protocol=4)})
    with pytest.raises(CompressionError, match=message):
        read(tmp_path / "data")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_damage_is_reported_with_the_name_of_the_file(tmp_path, arrays, form, damage):
    place = write(form, tmp_path / "data", arrays)
    files = sorted(path for path in [place, *place.rglob("*")] if path.is_file())
    victim = next(path for path in files if "test" in str(path.relative_to(tmp_path)) or len(files) == 1)
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
        if form == "images":
            shutil.rmtree(victim.parent)
    else:
        middle = len(content) // 2
        flipped = (
            content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 40]) + content[middle + 40 :]
        )
        victim.write_bytes({"truncated": content[:middle], "empty": b"", "flipped": flipped}[damage])
    if damage == "missing" and form in ("archive", "folder of archive"):
        assert cifar10.find(place) is None
        return
    if damage == "flipped" and form in ("batches", "unpacked"):
        return  # a pickle has no checksum; the archive has
    with pytest.raises(CompressionError) as caught:
        read(place)
    where = victim.parent.name if damage == "missing" else victim.name
    if form in ("hub", "flat parquet", "shards") and damage == "flipped":
        where = "test"
    assert where in str(caught.value), caught.value


def test_a_missing_split_is_reported(tmp_path, arrays):
    sources.write_cifar_parquet(tmp_path / "a", {"train": arrays["train"]})
    with pytest.raises(NotFoundError, match=r"no test-\*.parquet.*it holds train-00000"):
        read(tmp_path / "a")
    sources.write_image_folders(tmp_path / "b", {"test": arrays["test"]})
    with pytest.raises(NotFoundError, match="no folder 'train'"):
        read(tmp_path / "b")


def test_a_missing_shard_is_named(tmp_path, arrays):
    sources.write_cifar_parquet(tmp_path, arrays, shards=3)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(CompressionError, match="lacks train-00001-of-00003.parquet"):
        read(tmp_path)


def test_a_git_lfs_pointer_is_recognized(tmp_path, arrays):
    sources.write_cifar_parquet(tmp_path, arrays)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 119705255\n"
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(pointer)
    with pytest.raises(CompressionError, match="git lfs pull"):
        read(tmp_path)


def test_other_tables_are_refused(tmp_path, arrays):
    sources.write_cifar_parquet(tmp_path, arrays)
    path = tmp_path / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["img", "fine_label"]), path)
    with pytest.raises(CompressionError, match="without label"):
        read(tmp_path)
    features = table.schema.metadata[b"huggingface"].replace(b"airplane", b"apple")
    pq.write_table(table.replace_schema_metadata({b"huggingface": features}), path)
    with pytest.raises(CompressionError, match="apple"):
        read(tmp_path)
    pq.write_table(table.set_column(0, "img", pa.array(["x"] * len(table))), path)
    with pytest.raises(CompressionError, match="not encoded images"):
        read(tmp_path)
    images = pa.array([{"bytes": None, "path": "a.png"}] * len(table))
    pq.write_table(table.set_column(0, "img", images), path)
    with pytest.raises(CompressionError, match="not encoded images|paths only"):
        read(tmp_path)
    pq.write_table(table.set_column(1, "label", pa.array([-1] * len(table))), path)
    with pytest.raises(CompressionError, match="label -1"):
        read(tmp_path)


def test_image_folders_must_be_the_classes(tmp_path, arrays):
    sources.write_image_folders(tmp_path, arrays)
    (tmp_path / "train" / "plane").mkdir()
    with pytest.raises(CompressionError, match="unknown plane"):
        read(tmp_path)
    (tmp_path / "train" / "plane").rmdir()
    shutil.rmtree(tmp_path / "train" / "truck")
    with pytest.raises(CompressionError, match="lacks truck"):
        read(tmp_path)
    (tmp_path / "train" / "truck").mkdir()
    with pytest.raises(CompressionError, match="truck holds no"):
        read(tmp_path)


def test_images_must_be_32_by_32(tmp_path, arrays):
    sources.write_image_folders(tmp_path, arrays)
    victim = next((tmp_path / "test" / "bird").iterdir())
    victim.write_bytes(sources.encode(np.zeros((3, 32, 48), np.uint8)))
    with pytest.raises(CompressionError, match=f"{victim.name} is 48 x 32"):
        read(tmp_path)


def test_other_folders_are_not_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert cifar10.find(tmp_path) is None
    assert cifar10.find(tmp_path / "notes.txt") is None
    assert cifar10.find(tmp_path / "absent") is None
