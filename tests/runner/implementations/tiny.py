"""The least that the runner's own specs ask for; the adapter's name decides how it misbehaves."""

import os
import time

__version__ = "1.0"


def set_requires_grad(model, adapter_names, requires_grad=True):
    if log := os.environ.get("TINY_LOG"):
        with open(log, "a") as file:
            file.write(f"{adapter_names}\n")
    if adapter_names == "unknown":
        raise ValueError("no adapter is called unknown")
    if adapter_names == "loud":
        print('{"not": "ours"}')
    if adapter_names == "hang":
        time.sleep(float(os.environ.get("TINY_HANG", "60")))
    if adapter_names == "die":
        os._exit(7)
    for parameter in model.parameters():
        parameter.requires_grad = requires_grad
