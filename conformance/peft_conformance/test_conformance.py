"""What pytest collects to run the suite. No test function is here: the plugin makes an item of each check.

`pytest conformance --impl=reference` in a checkout; `pytest --pyargs peft_conformance --impl=mine` anywhere.
"""
