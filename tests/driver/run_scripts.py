"""Run scripts, each in a child of its own, and print how each ended as JSON. Nothing of ours is imported.

    python run_scripts.py MODULE SCRIPT...

The module is imported once, beforehand, so that a script costs a fork and not an import of torch.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback


def run(path: str) -> list[object]:
    """The exit status of a script and the last line of what it says on stderr."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            status = 0
            try:
                runpy.run_path(path, run_name="__main__")
                if any(name.split(".")[0] == "peft_conformance" for name in sys.modules):
                    status, text = 9, "the script has imported peft_conformance"
                    print(text, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return [os.waitstatus_to_exitcode(status), said.read()[-2000:]]


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    print(json.dumps({path: run(path) for path in sys.argv[2:]}))
