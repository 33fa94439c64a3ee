from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, TimmWrapperImageProcessor, ViTImageProcessor

from hf_compress.errors import CompressionError
from hf_compress.tasks import ImageDataset, TextDataset
from hf_compress.tasks.preprocessing import ImageSettings
from hf_compress.tasks.tokens import tokenize

from .conftest import image_processor


def images(count: int = 40) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return torch.from_numpy(pixels)


def image_data(count: int = 40, **options) -> ImageDataset:
    settings = ImageSettings.from_processor(image_processor())
    return ImageDataset(images(count), torch.arange(count) % 10, settings, **options)


def text_data(tokenizer, count: int = 30, pairs: bool = False) -> TextDataset:
    generator = np.random.default_rng(0)
    columns = [
        ["".join(generator.choice(list("abc .é")) for _ in range(generator.integers(1, 30))) for _ in range(count)]
        for _ in range(2 if pairs else 1)
    ]
    data = TextDataset(tokenize(tokenizer, columns, 24), torch.arange(count) % 2)
    data.columns = columns
    return data


def pil(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def test_images_are_what_the_processor_makes():
    processor, data = image_processor(), image_data()
    batch = data.__getitems__([5, 3, 39])
    assert set(batch) == {"pixel_values", "labels"}
    expected = processor(pil(images()[[5, 3, 39]]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=2e-6)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [5, 3, 9] and batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    "processor",
    [
        image_processor(input_size=(3, 48, 40)),
        image_processor(input_size=(3, 48, 40), crop_mode="squash"),
        image_processor(input_size=(3, 64, 64), interpolation="bicubic", crop_pct=0.875),
        image_processor(input_size=(3, 24, 24), crop_pct=0.9),
        ViTImageProcessor(size={"height": 56, "width": 48}, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4)),
        ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
        ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5, image_mean=(1, 1, 1)),
    ],
    ids=[
        "timm-48x40",
        "timm-squashed",
        "timm-64-cropped",
        "timm-24-cropped",
        "vit-56x48",
        "vit-unnormalized",
        "vit-rescaled",
    ],
)
def test_other_sizes_are_resized_as_the_processor_does(processor):
    # smooth images: the processor rounds to whole pixel values between resizing and normalizing
    smooth = torch.nn.functional.interpolate(images(6)[..., ::8, ::8].float(), size=(32, 32), mode="bilinear")
    pixels = smooth.round().to(torch.uint8)
    settings = ImageSettings.from_processor(processor)
    got = ImageDataset(pixels, torch.zeros(6, dtype=torch.int64), settings).__getitems__(range(6))["pixel_values"]
    expected = processor(pil(pixels), return_tensors="pt")["pixel_values"]
    assert got.shape == expected.shape
    steps = settings.rescale / min(settings.std)  # one pixel value
    assert (got - expected).abs().max() <= 1.51 * steps
    assert (got - expected).abs().mean() <= 0.5 * steps


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (object(), "object"),
        (ViTImageProcessor(image_mean=(0.5,), image_std=(0.5,)), "three of each"),
        (image_processor(interpolation="lanczos"), "lanczos"),
        (image_processor(crop_mode="border"), "crop_mode"),
        (ViTImageProcessor(resample=5), "resizes with"),
    ],
)
def test_processors_that_cannot_be_used_are_refused(processor, message):
    with pytest.raises(CompressionError, match=message):
        ImageSettings.from_processor(processor)


def test_augmentation_follows_the_epoch_and_not_the_batch():
    data = image_data(augment=True, seed=3)
    order = [7, 1, 30, 2]
    first = data.__getitems__(order)["pixel_values"]
    assert torch.equal(first, torch.stack([data[index]["pixel_values"] for index in order]))
    assert torch.equal(first, data.subset(order).__getitems__([0, 1, 2, 3])["pixel_values"])
    data.set_epoch(1)
    assert not torch.equal(first, data.__getitems__(order)["pixel_values"])
    data.set_epoch(0)
    assert torch.equal(first, data.__getitems__(order)["pixel_values"])


def test_plain_view_shares_memory_and_is_not_augmented():
    data = image_data(augment=True)
    view = data.plain()
    assert view._pixels.data_ptr() == data._pixels.data_ptr()
    assert torch.equal(view.__getitems__([4])["pixel_values"], image_data().__getitems__([4])["pixel_values"])
    assert data.augment and not torch.equal(data[4]["pixel_values"], view[4]["pixel_values"])
    some = data.plain(10, seed=1)
    assert len(some) == 10 and some.rows.tolist() == data.plain(20, seed=1).rows[:10].tolist()
    assert some.rows.tolist() != data.plain(10, seed=2).rows.tolist()
    assert len(data.plain(1000)) == len(data)


def test_channels_last_pixels_are_not_copied():
    pixels = images().contiguous(memory_format=torch.channels_last)
    settings = ImageSettings.from_processor(image_processor())
    assert ImageDataset(pixels, torch.zeros(40), settings)._pixels.data_ptr() == pixels.data_ptr()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_what_the_tokenizer_pads(tokenizer, pairs, side):
    tokenizer.padding_side = side
    data = text_data(tokenizer, pairs=pairs)
    order = [3, 29, 0, 11]
    texts = [[column[index] for index in order] for column in data.columns]
    expected = tokenizer(*texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
    batch = data.__getitems__(order)
    assert set(batch) == {*expected, "labels"}
    for name, values in expected.items():
        assert torch.equal(batch[name], values) and batch[name].dtype == torch.int64
    assert batch["labels"].tolist() == [1, 1, 0, 1]
    assert data.lengths[order].tolist() == expected["attention_mask"].sum(1).tolist()
    assert data.lengths.max() == 24


@pytest.mark.parametrize("side", ["right", "left"])
def test_single_texts_are_not_padded_and_collate(tokenizer, side):
    tokenizer.padding_side = side
    data = text_data(tokenizer)
    order = [3, 8, 20]
    examples = [data[index] for index in order]
    assert [len(example["input_ids"]) for example in examples] == data.lengths[order].tolist()
    batch, whole = data.collate(examples), data.__getitems__(order)
    assert set(batch) == set(whole)
    for name in whole:
        assert torch.equal(batch[name], whole[name])
    padded = DataCollatorWithPadding(tokenizer)([{k: v for k, v in e.items() if k != "labels"} for e in examples])
    assert torch.equal(batch["input_ids"], padded["input_ids"])
    assert data.collate(whole) is whole


def test_images_collate():
    data = image_data()
    whole = data.__getitems__([1, 2])
    batch = data.collate([data[1], data[2]])
    assert set(batch) == set(whole) and all(torch.equal(batch[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_batches_visit_every_example_once(tokenizer, kind):
    data = image_data(37) if kind == "image" else text_data(tokenizer, 37)
    labels = torch.full((37,), -1)
    widths, seen = [], 0
    for positions, batch in data.batches(8):
        labels[positions] = batch["labels"]
        seen += len(positions)
        widths.append(batch["pixel_values" if kind == "image" else "input_ids"].shape[1])
        assert torch.equal(batch["labels"], data.labels[positions])
    assert seen == 37 and torch.equal(labels, data.labels)
    if kind == "text":
        assert widths == sorted(widths, reverse=True)
        # no batch is longer than its longest text
        assert sum(widths) < 5 * data.lengths.max()
    with pytest.raises(ValueError, match="batch_size"):
        next(data.batches(0))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_data_loader_asks_for_whole_batches(tokenizer, kind):
    data = image_data(10) if kind == "image" else text_data(tokenizer, 10)
    asked = []
    original = type(data)._inputs
    data._inputs = lambda rows: asked.append(len(rows)) or original(data, rows)
    batches = list(DataLoader(data, batch_size=4, collate_fn=data.collate))
    assert asked == [4, 4, 2] and [len(batch["labels"]) for batch in batches] == [4, 4, 2]


def test_positions_outside_are_refused():
    data = image_data(5)
    assert data[-1]["labels"] == 4
    for index in (5, -6):
        with pytest.raises(IndexError, match="5 examples"):
            data[index]


def test_processor_settings_are_read_once():
    settings = ImageSettings.from_processor(TimmWrapperImageProcessor(pretrained_cfg={"input_size": (3, 32, 32)}))
    assert settings.size == (36, 36) and settings.crop == (32, 32)  # timm's default crop_pct of 0.875
