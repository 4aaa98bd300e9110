"""``licet demo``: the main job on real data, played for real, with every outcome held to what it must be.

It leaves its installation in ``demo/``: to go on with it, run ``licet serve --data demo``.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from licet_engine.demo.acts import ACTS
from licet_engine.demo.stage import DATA, Stage, Unexpected, free_port
from licet_engine.init import initialise
from licet_engine.serve import Supervisor, is_served
from licet_engine.settings import load_settings

FOLDER = Path("demo")
_MARKER = "this-folder-is-made-by-licet-demo"


def main(folder: Path = FOLDER) -> int:
    """Play the story.

    Args:
        folder: Where; what a demo before left there is removed, anything else is left alone.

    Returns:
        0 if every outcome, denials included, was the expected one; else 1. 2 if it could not begin.
    """
    started_at_s = time.monotonic()
    stage = Stage(folder)
    if not DATA.is_file():
        stage.fail(
            f"there is no example data at {DATA}: it comes with the repository, not with the wheel; "
            "clone the repository and run make demo there"
        )
        return 2
    if folder.exists():
        if not (folder / _MARKER).exists():
            stage.fail(f"{folder} exists and was not made by licet demo: move it away, or run this elsewhere")
            return 2
        if is_served(folder):
            stage.fail(
                f"a service runs on {folder}: stop it first, for this begins by removing what a demo left there before"
            )
            return 2
        stage.tell(f"removing {folder}, which a demo before left")
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    (folder / _MARKER).touch()
    settings = load_settings({}, data=folder.absolute(), port=free_port(), router_port=free_port())
    stage.heading("Making an installation: keys, database, first operator")
    initialise(settings, instance="licet-demo", beside=frozenset({_MARKER}))
    supervisor = Supervisor(settings, log=folder / "service.log")
    try:
        supervisor.start()
        threading.Thread(target=supervisor.run, name="licet-demo", daemon=True).start()
        stage.opened(settings, supervisor)
        for number, act in enumerate(ACTS, start=1):
            stage.heading(f"{number}. {act.__doc__ or act.__name__}")
            act(stage)
    except Unexpected as error:
        stage.fail(str(error))
    except KeyboardInterrupt:
        stage.fail("interrupted")
    finally:
        supervisor.stop()
    return stage.curtain(time.monotonic() - started_at_s)
