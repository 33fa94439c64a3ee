"""Kill a run at many points, one after the other, and finish it; a process of its own, as it forks after the imports.

`python kill_driver.py RECIPE.json FOLDER POINTS`: prints one JSON object: the metrics and the fingerprints of the
predictions, stage by stage, of a run that nothing stopped under "whole" and of the one that was killed at each of the
points, in turn, and went on under "killed".
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

import hf_compress
from hf_compress import runner
from hf_compress.journal import Journal
from hf_compress.recipe import load_recipe


def kill_at(operation: str, stage: str, count: int = 1) -> None:
    """Let this process kill itself, as `kill -9` would.

    Args:
        operation (`str`): an operation of the journal, which strikes when that starts; "train" strikes at a training
            step. "written" strikes when the files of a model are, and have no final name yet; "rename" when a stage
            would get its name.
        count (`int`): the training step.
    """

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if operation == "written":
        save = runner.save_stage
        runner.save_stage = lambda model, processor, folder: (
            save(model, processor, folder),
            die() if stage in folder.parts else None,
        )
        return
    if operation == "rename":
        replace = os.replace
        os.replace = lambda source, target: (
            die() if Path(target).parts[-2:] == ("stages", stage) else replace(source, target)
        )
        return
    append = Journal.append

    def deadly_append(self, **event):
        append(self, **event)
        if (event.get("operation"), event.get("stage"), event.get("status")) == (operation, stage, "started"):
            if operation != "train":
                die()
            steps = 0

            def deadly_step(optimizer, *unused):
                nonlocal steps
                steps += 1
                if steps == count:
                    die()

            register_optimizer_step_post_hook(deadly_step)

    Journal.append = deadly_append


def in_child(action) -> int:
    """Run `action` in a fork and give its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main(recipe_path: str, folder: str, points: str) -> None:
    hf_compress.load_methods()
    recipe = json.loads(Path(recipe_path).read_text())
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"

    def finish(output_dir: Path) -> dict:
        code = in_child(lambda: runner.run(load_recipe({**recipe, "output_dir": str(output_dir)})))
        assert code == 0, f"{output_dir}: exit code {code}"
        results = json.loads((output_dir / "results.json").read_text())
        return {stage["name"]: [stage["metrics"], stage["predictions"]] for stage in results["stages"]}

    for operation, stage, count in json.loads(points):

        def die(operation=operation, stage=stage, count=count):
            kill_at(operation, stage, count)
            runner.run(load_recipe({**recipe, "output_dir": str(killed)}))

        code = in_child(die)
        assert code == -signal.SIGKILL, f"{operation} of {stage}: the run was not killed, exit code {code}"
        visible = [path.name for path in (killed / "stages").glob("[0-9]*")]
        assert stage not in visible, f"{operation} of {stage}: a half-made stage is there under its name"
        assert not (killed / "results.json").exists()
    print(json.dumps({"whole": finish(whole), "killed": finish(killed)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
