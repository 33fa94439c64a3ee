from __future__ import annotations

import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import timm
from datasets import Dataset
from hub_server import TOKEN, HubServer, hub  # noqa: F401
from safetensors.torch import save


CLIENT = Path(__file__).with_name("hub_client.py")


def numbers(values: list[int]) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_dict({"number": values}).to_parquet(buffer)
    return buffer.getvalue()


def run_client(facts: Path, environment: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, str(CLIENT), str(facts)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(facts.read_text())


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One client process against one Hub, and a second one that works from the cache of the first."""
    folder = tmp_path_factory.mktemp("hub")
    network = timm.create_model("resnet10t")
    config = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": network.default_cfg}
    with HubServer() as server:
        server.add(
            "timm/resnet10t.c3_in1k",
            {"config.json": json.dumps(config).encode(), "model.safetensors": save(network.state_dict())},
        )
        server.add(
            "owner/numbers",
            {
                "plain_text/train-00000-of-00001.parquet": numbers([1, 2, 3]),
                "plain_text/test-00000-of-00001.parquet": numbers([4, 5]),
            },
            kind="datasets",
        )
        environment = server.environment(folder / "home")
        facts = run_client(folder / "facts.json", environment)
        asked = len(server.requests)
        offline = run_client(folder / "offline.json", environment | {"HF_HUB_OFFLINE": "1"})
        return {"server": server, "facts": facts, "offline": offline, "asked": asked, "network": network}


def test_folder(session):
    facts, repo = session["facts"]["folder"], session["server"].repos["models", "tester/folder"]
    assert session["facts"]["token"]
    assert facts["private"] and repo.private
    assert facts["url"].endswith("/tester/folder")
    assert sorted(facts["files"]) == [".gitattributes", "README.md", "sub/data.bin"] == sorted(repo.files)
    assert facts["old"] == 256 * 40 and facts["new"] == "new"
    assert "Invalid metadata in README.md" in facts["bad card"]


def test_model_comes_back_with_equal_logits(session):
    facts, repo = session["facts"]["model"], session["server"].repos["models", "tester/bert"]
    assert facts == {"equal": True, "labels": ["negative", "positive"], "tokens": [2, 5, 12, 3]}
    assert repo.private and {"config.json", "model.safetensors", "tokenizer.json"} <= repo.files.keys()


def test_refusals(session):
    refused = session["facts"]["refused"]
    assert "401: Invalid user token" in refused["whoami"]
    assert "401" in refused["create"] and "401" in refused["nobody"]
    assert "403" in refused["other owner"]
    assert refused["private read"].startswith("RepositoryNotFoundError 401")
    assert refused["missing"].startswith("RepositoryNotFoundError 404")
    assert refused["revision"].startswith("RevisionNotFoundError 404")
    assert ("models", "tester/new") not in session["server"].repos


def test_data_set(session):
    assert session["facts"]["dataset"] == [4, 5]


def test_load_model_takes_timm_weights_from_the_endpoint(session):
    weight = session["network"].conv1[0].weight
    assert session["facts"]["timm"] == pytest.approx(weight.sum().item(), abs=1e-4)


def test_load_model_says_which_hub_it_asked(session):
    message = session["facts"]["load_model"]
    assert f"the Hub: {session['server'].url}: " in message and "404" in message
    assert "hf download tester/nothing" in message


def test_load_model_offline_uses_the_cache_and_asks_nobody(session):
    assert session["offline"]["tokens"] == [2, 5, 12, 3]
    assert "HF_HUB_OFFLINE is set" in session["offline"]["load_model"]
    assert len(session["server"].requests) == session["asked"]


def test_ranges_and_ids_of_files(hub):  # noqa: F811
    content = bytes(range(256))
    repo = hub.add("owner/ranges", {"sub/file.bin": content})
    url = f"{hub.url}/owner/ranges/resolve/main/sub/file.bin"
    for span, expected in (
        ("bytes=10-19", content[10:20]),
        ("bytes=250-", content[250:]),
        ("bytes=250-999", content[250:]),
    ):
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": span})) as answer:
            assert answer.status == 206 and answer.read() == expected
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        assert answer.headers["X-Repo-Commit"] == repo.head and answer.headers["Content-Length"] == "256"
        assert answer.headers["ETag"] == '"c86626638e0bc8cf47ca49bb1525b40e9737ee64"'  # git hash-object
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{hub.url}/owner/ranges/resolve/main/other")
    assert error.value.code == 404 and error.value.headers["X-Error-Code"] == "EntryNotFound"


def test_hubs_do_not_share_anything(hub, tmp_path):  # noqa: F811
    assert not hub.repos and not hub.requests
    environment = hub.environment(tmp_path)
    assert environment["HF_ENDPOINT"] == hub.url and environment["HF_TOKEN"] == TOKEN
    assert "HF_HUB_OFFLINE" not in environment and "HF_TOKEN" not in hub.environment(tmp_path, token=None)
