from __future__ import annotations

import logging
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from hf_compress.errors import CompressionError
from hf_compress.tasks import cache, tokens
from hf_compress.tasks.cache import cached_tensors
from hf_compress.tasks.tokens import tokenize, tokenizer_fingerprint


TEXTS = ["a cab", "bad ab. cab", "a", "b" * 40]


class Counting:
    """Counts how often a tokenizer is called."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.tokenizer(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_texts_are_tokenized_once(tokenizer, cache_home):
    counting = Counting(tokenizer)
    first = tokenize(counting, [TEXTS], 16)
    again = tokenize(counting, [list(TEXTS)], 16)
    assert counting.calls == 1
    assert first.flat.keys() == again.flat.keys() and first.flat["input_ids"].dtype == np.int32
    for name in first.flat:
        assert np.array_equal(first.flat[name], again.flat[name])
    assert np.array_equal(first.offsets, again.offsets) and first.padding == again.padding
    assert len(list(cache_home.glob("tokens-*.safetensors"))) == 1


@pytest.mark.parametrize("change", ["texts", "order", "length", "pairs", "vocabulary", "case", "class"])
def test_anything_that_changes_the_tokens_is_tokenized_anew(tokenizer, change, monkeypatch):
    tokenize(tokenizer, [TEXTS], 16)
    columns, length = [TEXTS], 16
    if change == "texts":
        columns = [[*TEXTS[:-1], "c"]]
    elif change == "order":
        columns = [TEXTS[::-1]]
    elif change == "length":
        length = 17
    elif change == "pairs":
        columns = [TEXTS, TEXTS]
    elif change == "vocabulary":
        tokenizer.add_tokens(["cab"])
    elif change == "case":
        tokenizer = type(tokenizer)(vocab=tokenizer.get_vocab(), do_lower_case=False, model_max_length=64)
    elif change == "class":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    counting = Counting(tokenizer)
    tokenize(counting, columns, length)
    assert counting.calls == 1


def test_padding_state_of_the_tokenizer_does_not_matter(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=7)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.truncation_side = "left"
    assert tokenizer_fingerprint(tokenizer) != before


def test_tokens_in_chunks_are_the_same(tokenizer, monkeypatch):
    whole = tokens._encode(tokenizer, [TEXTS, TEXTS[::-1]], 16)
    monkeypatch.setattr(tokens, "_CHUNK", 3)
    chunks = tokens._encode(tokenizer, [TEXTS, TEXTS[::-1]], 16)
    assert whole.keys() == chunks.keys() and all(torch.equal(whole[key], chunks[key]) for key in whole)


def test_a_tokenizer_without_type_ids(tokenizer):
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert set(tokenize(tokenizer, [TEXTS], 16).batch(np.array([0, 1]))) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("length", "pairs", "message"),
    [(65, False, "at most 64"), (2, False, "at least 3"), (4, True, "at least 5")],
)
def test_max_length_must_fit_the_tokenizer(tokenizer, length, pairs, message):
    with pytest.raises(CompressionError, match=f"task.max_length: got {length}.*{message}"):
        tokenize(tokenizer, [TEXTS] * (2 if pairs else 1), length)
    tokenizer.model_max_length = int(1e30)
    tokenize(tokenizer, [TEXTS], 65)


def test_what_is_no_tokenizer_is_refused(tokenizer):
    with pytest.raises(CompressionError, match="needs a tokenizer, got dict"):
        tokenize({}, [TEXTS], 16)
    tokenizer.pad_token = None
    with pytest.raises(CompressionError, match="no padding token"):
        tokenize(tokenizer, [TEXTS], 16)


def make() -> dict[str, torch.Tensor]:
    return {"values": torch.arange(1000)}


def valid(tensors) -> bool:
    return "values" in tensors and len(tensors["values"]) == 1000


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other"])
def test_a_damaged_cache_file_is_made_again(cache_home, damage, caplog):
    cached_tensors("x", make, valid)
    path = cache_home / "x.safetensors"
    content = path.read_bytes()
    if damage == "other":
        cached_tensors("y", lambda: {"values": torch.arange(3)}, lambda tensors: True)
        bad = (cache_home / "y.safetensors").read_bytes()
    else:
        bad = {"truncated": content[:-100], "empty": b"", "garbage": b"x" * 500}[damage]
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_tensors("x", make, valid)["values"], torch.arange(1000))
    assert "made again" in caplog.text
    assert path.read_bytes() == content


def test_only_one_of_many_computes(cache_home):
    computed, results = [], []

    def slow():
        computed.append(1)
        time.sleep(0.3)
        return make()

    threads = [
        threading.Thread(target=lambda: results.append(cached_tensors("x", slow, valid)["values"].sum().item()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1 and results == [499_500] * 6


@pytest.mark.parametrize("moment", ["computing", "writing"])
def test_a_killed_writer_leaves_nothing_under_the_name(cache_home, moment, monkeypatch):
    def die(*arguments):
        if moment == "writing":
            arguments[1].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        import safetensors.torch

        safetensors.torch.save_file = die
        cached_tensors("x", die if moment == "computing" else make, valid)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (cache_home / "x.safetensors").exists()
    leftovers = list(cache_home.glob(".*.partial"))
    assert len(leftovers) == (moment == "writing")
    for leftover in leftovers:  # a day later
        os.utime(leftover, (time.time() - 90_000,) * 2)
    assert valid(cached_tensors("x", make, valid))  # the lock went with the process
    assert not list(cache_home.glob(".*.partial"))
    assert valid(cached_tensors("x", die, valid))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    from huggingface_hub import constants

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert valid(cached_tensors("x", make, valid))
    assert "cannot be written" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(cache_home, monkeypatch, caplog):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with caplog.at_level(logging.WARNING):
        assert valid(cached_tensors("x", make, valid))
    assert "No space left" in caplog.text
    assert [path.suffix for path in cache_home.iterdir()] == [".lock"]


def test_an_error_while_computing_is_passed_on_and_the_lock_let_go(cache_home):
    def fail():
        raise CompressionError("the data are damaged")

    with pytest.raises(CompressionError, match="damaged"):
        cached_tensors("x", fail, valid)
    assert valid(cached_tensors("x", make, valid))


def test_the_cache_is_not_with_the_data(cache_home):
    assert cache.cache_directory() == cache_home
