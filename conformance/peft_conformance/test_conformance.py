"""What pytest collects to run the suite. There is no test function here: the plugin makes one item of each check.

`pytest conformance --impl=reference` in a checkout, `pytest --pyargs peft_conformance --impl=my_fork` anywhere.
"""
