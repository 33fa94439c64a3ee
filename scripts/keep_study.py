"""Keep what a study found without its models: recipes, results and journals of its runs, and the report on them.

python scripts/keep_study.py outputs/minilm-sst2-pruning recipes/studies/minilm_sst2_pruning.yaml model_cards/studies
"""

import argparse
import shutil
import sys
from pathlib import Path

from hf_compress.cli import main as hf_compress
from hf_compress.journal import JOURNAL
from hf_compress.storage import read_json


RECORDS = ("recipe.yaml", "results.json", JOURNAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="the folder of a study")
    parser.add_argument("recipe", type=Path, help="the YAML file that it was made from")
    parser.add_argument("place", type=Path, help="where its folder goes; one of the same name is replaced")
    options = parser.parse_args()
    source = options.study.resolve()
    folder = options.place / source.name
    if folder.resolve() == source:
        parser.error(f"{options.study} lies in {options.place} already; give the folder that the study was run in.")
    study = read_json(source / "study.json")
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    shutil.copy(source / "study.json", made)
    shutil.copy(options.recipe, made / "study.yaml")
    if (source / JOURNAL).exists():  # what people added to the study as a whole
        shutil.copy(source / JOURNAL, made)
    for run in study["runs"]:
        place = made / run["folder"]
        place.mkdir(parents=True)
        for name in RECORDS:
            if (source / run["folder"] / name).exists():  # a run that failed has no results
                shutil.copy(source / run["folder"] / name, place)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    report = ["report", str(folder), "--output", str(folder / "report"), "--lang"]
    code = hf_compress([*report, "zh"])
    if code == 0:
        (folder / "report" / "report.html").rename(folder / "report" / "report.zh.html")
        code = hf_compress([*report, "en"])
    return code


if __name__ == "__main__":
    sys.exit(main())
