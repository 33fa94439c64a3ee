"""What a user of the Hub does, in a process of its own: `python hub_client.py FACTS.json`; see test_hub_server.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertTokenizer

from hf_compress.errors import NotFoundError
from hf_compress.models import load_model


@dataclass
class FakeTask:
    name: str
    modality: str
    label_names: list[str]
    problem_type: str = "single_label_classification"
    spec: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_length=16))

    @property
    def num_labels(self) -> int:
        return len(self.label_names)


SST2 = FakeTask("glue/sst2", "text", ["negative", "positive"])
CIFAR = FakeTask("cifar10", "image", [f"class{index}" for index in range(10)])
IDS = torch.tensor([[2, 5, 9, 3]])


def folder_upload(api: HfApi) -> dict:
    folder = Path(tempfile.mkdtemp())
    (folder / "sub").mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "sub" / "data.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "left-out.tmp").write_text("x")
    api.create_repo("tester/folder", private=True)
    first = api.upload_folder(repo_id="tester/folder", folder_path=folder, ignore_patterns="*.tmp")
    again = api.create_repo("tester/folder", exist_ok=True)
    (folder / "sub" / "data.bin").write_bytes(b"new")
    api.upload_folder(repo_id="tester/folder", folder_path=folder, ignore_patterns="*.tmp")
    old = Path(snapshot_download("tester/folder", revision=first.oid))
    new = Path(snapshot_download("tester/folder"))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "README.md").write_text("---\nmodel-index:\n- results: [\n---\n")
    return {
        "url": str(again),
        "private": api.model_info("tester/folder").private,
        "files": api.list_repo_files("tester/folder"),
        "old": (old / "sub" / "data.bin").stat().st_size,
        "new": (new / "sub" / "data.bin").read_text(),
        "bad card": refusal(lambda: api.upload_folder(repo_id="tester/folder", folder_path=bad)),
    }


def model_round_trip() -> dict:
    config = BertConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        expected = model(IDS).logits
    model.push_to_hub("tester/bert", private=True)
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"])}
    BertTokenizer(vocab=words).push_to_hub("tester/bert")
    shutil.rmtree(constants.HF_HUB_CACHE)
    reloaded = AutoModelForSequenceClassification.from_pretrained("tester/bert").eval()
    ours, tokenizer = load_model("tester/bert", task=SST2)
    return {
        "equal": torch.equal(reloaded(IDS).logits, expected) and torch.equal(ours(IDS).logits, expected),
        "labels": list(ours.config.id2label.values()),
        "tokens": tokenizer("a h")["input_ids"],
    }


def refusal(action) -> str:
    try:
        action()
    except (HfHubHTTPError, ValueError) as error:
        response = getattr(error, "response", None)
        return f"{type(error).__name__} {response.status_code if response is not None else ''}: {error}"
    return "accepted"


def refusals() -> dict:
    stranger = HfApi(token="hf_of_nobody")
    return {
        "whoami": refusal(stranger.whoami),
        "create": refusal(lambda: stranger.create_repo("tester/new")),
        "nobody": refusal(lambda: HfApi(token=False).create_repo("tester/new")),
        "other owner": refusal(lambda: HfApi().create_repo("someone/new")),
        "private read": refusal(lambda: HfApi(token=False).model_info("tester/folder")),
        "missing": refusal(lambda: HfApi().model_info("tester/nothing")),
        "revision": refusal(lambda: HfApi().model_info("tester/folder", revision="v9")),
    }


def main() -> None:
    if constants.HF_HUB_OFFLINE:
        model, tokenizer = load_model("tester/bert", task=SST2)
        facts = {"tokens": tokenizer("a h")["input_ids"]}
    else:
        timm_model, _ = load_model("resnet10t", task=CIFAR)
        facts = {
            "token": get_token() == os.environ["HF_TOKEN"],
            "folder": folder_upload(HfApi()),
            "model": model_round_trip(),
            "refused": refusals(),
            "timm": timm_model.timm_model.conv1[0].weight.sum().item(),
            "dataset": datasets.load_dataset("owner/numbers", split="test")["number"][:],
        }
    try:
        load_model("tester/nothing", task=SST2)
    except NotFoundError as error:
        facts["load_model"] = str(error)
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
