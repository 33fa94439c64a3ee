"""Run a recipe or a study: `accelerate launch scripts/compress.py FILE.yaml [key=value ...] [--push_to_hub]`."""

import sys

from hf_compress.cli import main


if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
