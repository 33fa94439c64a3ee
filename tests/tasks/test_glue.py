from __future__ import annotations

import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_compress.errors import CompressionError, NotFoundError
from hf_compress.tasks import glue, tsv

from . import sources


# as on the Hub: https://huggingface.co/datasets/nyu-mll/glue
HUB_LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "stsb": (),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}

every_subset = pytest.mark.parametrize("subset", glue.SUBSETS.values(), ids=list(glue.SUBSETS))


def read(place, subset):
    reader = glue.find(place, subset)
    assert reader is not None
    return reader()


def check(examples, subset, splits):
    assert list(examples) == list(subset.sizes)
    for split, found in examples.items():
        *texts, labels = splits[split].values()
        assert list(found.columns) == texts
        assert found.labels.tolist() == labels
        assert found.labels.dtype == (np.int64 if subset.labels else np.float32)


@every_subset
def test_labels_are_in_the_order_of_the_hub(subset):
    assert subset.labels == HUB_LABELS[subset.name]


@every_subset
def test_every_form_gives_the_same_examples(tmp_path, subset):
    splits = sources.glue_examples(subset)
    files = sources.glue_files(subset, splits)
    sources.write_glue_parquet(tmp_path / "hub" / subset.name, subset, splits)
    sources.write_files(tmp_path / "tsv" / subset.folder, files)
    inside = {f"{subset.folder}/{name}": content for name, content in files.items()}
    other = {"AX/train.tsv": b"no", "__MACOSX/x/._train.tsv": b"no", f"old/{subset.folder}/train.tsv": b"no"}
    sources.write_zip(tmp_path / "glue_data.zip", {f"glue_data/{name}": content for name, content in inside.items()})
    (tmp_path / "zips").mkdir()
    sources.write_zip(tmp_path / "zips" / "AX.zip", {"AX/train.tsv": b"no"})
    sources.write_zip(tmp_path / "zips" / f"{subset.folder}.zip", {**inside, **other})
    sources.write_zip(tmp_path / f"{subset.folder}.zip", files)  # without a folder in it
    before = sorted(tmp_path.rglob("*"))
    places = ["hub", f"hub/{subset.name}", "tsv", f"tsv/{subset.folder}", "glue_data.zip", "zips"]
    for place in (*places, f"{subset.folder}.zip"):
        check(read(tmp_path / place, subset), subset, splits)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is extracted or cached beside the data


def test_zip_members_that_point_outside_are_harmless(tmp_path):
    subset = glue.SUBSETS["sst2"]
    splits = sources.glue_examples(subset)
    members = {f"SST-2/{name}": content for name, content in sources.glue_files(subset, splits).items()}
    evil = {"../../escaped.tsv": b"x", "/absolute.tsv": b"x", "SST-2/../../escaped/train.tsv": b"x"}
    (tmp_path / "a" / "b").mkdir(parents=True)
    sources.write_zip(tmp_path / "a" / "b" / "glue.zip", {**evil, **members})
    before = sorted(tmp_path.rglob("*"))
    check(read(tmp_path / "a" / "b" / "glue.zip", subset), subset, splits)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_zip_is_named(tmp_path, damage):
    subset = glue.SUBSETS["sst2"]
    files = sources.glue_files(subset, sources.glue_examples(subset))
    path = tmp_path / "glue.zip"
    sources.write_zip(path, {f"SST-2/{name}": content for name, content in files.items()})
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[100:140] = bytes(byte ^ 0xFF for byte in content[100:140])
    path.write_bytes({"truncated": content[:-30], "flipped": content, "empty": b""}[damage])
    with pytest.raises(CompressionError, match="glue.zip.*cannot be read"):
        read(path, subset)


def original_mrpc(folder, splits):
    """Microsoft's two files and GLUE's list, from examples whose evaluation pairs stand between the others."""
    rows, held = [], []
    for split in ("validation", "train"):
        *texts, labels = splits[split].values()
        for number, (first, second, label) in enumerate(zip(*texts, labels, strict=True)):
            ids = str(number), str(100 * (1 + (split == "train")) + number)
            rows.append((number, "\t".join([str(label), *ids, first, second])))
            if split == "validation":
                held.append("\t".join(ids))
    lines = [
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        *(line for _, line in sorted(rows, key=lambda r: r[0])),
    ]
    files = {"msr_paraphrase_train.txt": "\r\n".join(lines).encode(), "dev_ids.tsv": "\n".join(held).encode()}
    sources.write_files(folder, files)


def test_mrpc_as_microsoft_ships_it(tmp_path):
    subset = glue.SUBSETS["mrpc"]
    splits = sources.glue_examples(subset)
    original_mrpc(tmp_path / "MRPC", splits)
    check(read(tmp_path, subset), subset, splits)
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(NotFoundError, match="dev_ids.tsv is missing"):
        read(tmp_path, subset)


def test_lines_of_qqp_that_are_cut_short_are_left_out(tmp_path, caplog):
    subset = glue.SUBSETS["qqp"]
    splits = sources.glue_examples(subset)
    files = sources.glue_files(subset, splits)
    files["train.tsv"] += b"99\t1\t2\tWhat is\n98\t1\t2\tOne\tTwo\n"
    sources.write_files(tmp_path / "QQP", files)
    with caplog.at_level(logging.WARNING):
        check(read(tmp_path, subset), subset, splits)
    assert "2 incomplete lines" in caplog.text


@every_subset
def test_a_file_cut_within_a_line_is_refused(tmp_path, subset):
    if subset.name == "qqp":
        pytest.skip("its published files have such lines")
    files = sources.glue_files(subset, sources.glue_examples(subset))
    *_, last = files["train.tsv"].rstrip(b"\n").rpartition(b"\n")
    files["train.tsv"] = files["train.tsv"].rstrip(b"\n")[: -len(last) + len(last.split(b"\t")[0])]
    sources.write_files(tmp_path / subset.folder, files)
    with pytest.raises(CompressionError, match=f"train.tsv, line {25 - (subset.name == 'cola')}: "):
        read(tmp_path, subset)


def test_a_file_cut_at_the_end_of_a_line_is_warned_about(tmp_path, caplog):
    subset = glue.SUBSETS["rte"]
    sources.write_files(tmp_path / "RTE", sources.glue_files(subset, sources.glue_examples(subset)))
    with caplog.at_level(logging.WARNING):
        read(tmp_path, subset)
    assert "24 examples; the published train split of rte has 2490" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wnli", b"", "columns none"),
        ("wnli", b"index\tsentence\tlabel\n0\ta\t1", "without sentence1, sentence2"),
        ("wnli", b"index\tsentence1\tsentence2\tlabel\n", "no examples"),
        ("wnli", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t2", "label is not valid.*allowed are"),
        ("wnli", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t", "label is not valid"),
        ("wnli", b"index\tsentence1\tsentence2\tlabel\n0\ta\t\xff\t1", "line 2: not UTF-8"),
        ("rte", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral", "neutral"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\tgood", "numbers from 0 to 5"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\t5.5", "score 5.5"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\tnan", "score nan"),
    ],
)
def test_files_of_another_content_are_refused(tmp_path, name, content, message):
    subset = glue.SUBSETS[name]
    files = sources.glue_files(subset, sources.glue_examples(subset))
    sources.write_files(tmp_path / subset.folder, {**files, "dev.tsv": content})
    with pytest.raises(CompressionError, match=message) as caught:
        read(tmp_path, subset)
    assert "dev.tsv" in str(caught.value)


@pytest.mark.parametrize("form", ["tsv", "zip", "parquet"])
def test_a_missing_split_is_reported(tmp_path, form):
    subset = glue.SUBSETS["mnli"]
    splits = sources.glue_examples(subset)
    files = sources.glue_files(subset, splits)
    place = tmp_path / "data"
    if form == "parquet":
        sources.write_glue_parquet(place / "mnli", subset, splits)
        (place / "mnli" / "validation_mismatched-00000-of-00001.parquet").unlink()
    else:
        del files["dev_mismatched.tsv"]
        sources.write_files(place / "MNLI", files)
        if form == "zip":
            sources.write_zip(tmp_path / "g.zip", {f"MNLI/{name}": content for name, content in files.items()})
            place = tmp_path / "g.zip"
    with pytest.raises(NotFoundError, match="(dev|validation)_mismatched"):
        read(place, subset)


@pytest.mark.parametrize("damage", ["truncated", "empty", "null", "unlabelled", "texts"])
def test_damaged_parquet_is_named(tmp_path, damage):
    subset = glue.SUBSETS["sst2"]
    sources.write_glue_parquet(tmp_path / "sst2", subset, sources.glue_examples(subset))
    path = tmp_path / "sst2" / "validation-00000-of-00001.parquet"
    content, table = path.read_bytes(), pq.read_table(path)
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "null":
        pq.write_table(table.set_column(0, "sentence", pa.array([None] * len(table), pa.string())), path)
    elif damage == "texts":
        pq.write_table(table.set_column(0, "sentence", pa.array(range(len(table)))), path)
    else:
        shutil.copy(tmp_path / "sst2" / "test-00000-of-00001.parquet", path)
    with pytest.raises(CompressionError, match="sst2.*validation"):
        read(tmp_path, subset)


def test_files_of_another_subset_are_not_taken(tmp_path):
    rte, wnli = glue.SUBSETS["rte"], glue.SUBSETS["wnli"]
    sources.write_files(tmp_path / "RTE", sources.glue_files(rte, sources.glue_examples(rte)))
    assert glue.find(tmp_path, wnli) is None
    assert glue.find(tmp_path / "RTE", wnli) is None
    sources.write_zip(tmp_path / "RTE.zip", sources.glue_files(rte, sources.glue_examples(rte)))
    assert glue.find(tmp_path / "RTE.zip", wnli) is None
    assert glue.find(tmp_path / "absent", rte) is None


def test_only_a_line_feed_ends_a_line():
    content = "a\u2028b\tc\x85\td\x0b\r\n\ne\rf\tg".encode()
    assert list(tsv.read_rows(content, "x")) == [(1, ["a\u2028b", "c\x85", "d\x0b"]), (3, ["e\rf", "g"])]
