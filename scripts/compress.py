"""Run a recipe or a study: `accelerate launch scripts/compress.py FILE.yaml [key=value ...] [--push_to_hub]`."""

import sys

from hf_compress.cli import main
from hf_compress.endings import end_with_launcher


if __name__ == "__main__":
    end_with_launcher()
    sys.exit(main(["run", *sys.argv[1:]]))
