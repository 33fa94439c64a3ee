"""Run by a test in a process of its own: reload exports with Optimum alone and write down what they give."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.intel import OVModelForImageClassification, OVModelForSequenceClassification
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, pipeline


# as the model card says: left alone, OpenVINO computes in what the CPU is fastest at
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

jobs, target = json.loads(sys.argv[1]), Path(sys.argv[2])
labels, models = {}, {}
for folder, batch in jobs:
    AutoConfig.from_pretrained(folder)
    is_text = "bert" in Path(folder).name
    cls = OVModelForSequenceClassification if is_text else OVModelForImageClassification
    model = cls.from_pretrained(folder, ov_config=EXACT)
    inputs = {name: torch.from_numpy(value) for name, value in np.load(batch).items()}
    np.save(target / f"{Path(folder).name}.npy", model(**inputs).logits.numpy())
    labels[Path(folder).name] = model.config.id2label
    models[is_text] = folder, model

folder, model = models[False]
images = pipeline("image-classification", model=model, image_processor=AutoImageProcessor.from_pretrained(folder))
folder, model = models[True]
texts = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
labels["pipelines"] = [images(str(target / "image.png"), top_k=1)[0]["label"], texts("word3 word9")[0]["label"]]
(target / "labels.json").write_text(json.dumps(labels))
assert not any(name.partition(".")[0] == "hf_compress" for name in sys.modules)
