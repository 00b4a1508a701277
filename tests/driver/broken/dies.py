"""An implementation that ends its process, in the way that the environment or the adapter's name asks for."""

import contextlib
import ctypes
import os
import sys
import threading
import time

from peft_reference import *  # noqa: F403
from peft_reference import inject_adapter_in_model as _inject


def inject_adapter_in_model(peft_config, model, adapter_name="default", **kwargs):
    if adapter_name == "exit":
        print("goodbye", file=sys.stderr, flush=True)
        os._exit(3)
    if adapter_name == "segfault":
        ctypes.string_at(0)
    if adapter_name == "abort":
        os.abort()
    if adapter_name == "kill":
        os.kill(os.getpid(), 9)
    if adapter_name == "sysexit":
        sys.exit("enough")
    if adapter_name == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if adapter_name == "stubborn":
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)
    if adapter_name == "noise":
        print("printed by Python")
        os.write(1, b'written to the descriptor\n{"observation": {}}\n')
    if adapter_name == "flood":
        print("x" * 10_000_000)
        os.write(1, b"y" * 10_000_000)
        os.write(2, b"z" * 10_000_000)
    if adapter_name == "input":
        print(repr(sys.stdin.read()))
    if adapter_name == "vandal":
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"this is no JSON\n")
    return _inject(peft_config, model, adapter_name, **kwargs)
