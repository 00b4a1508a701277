"""Wrong implementations: each is the reference with one fault, and says which checks must notice it.

`fake.py` holds the means, `harness.py` runs the suite on one of them, `test_gate.py` demands that every fake
is caught and every MUST check is failed by one. The fakes stand by topic; a new one is a function:

    @fake("The base model stays trainable.", caught_by=["inject.freezes:base-frozen"])
    def forgets_to_freeze(patch: Patches) -> None:
        @patch.replace(injection.Injection, "apply")
        def apply(original, self): ...
"""
