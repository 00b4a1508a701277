"""The conformance suite: a spec language, a driver that observes, a judge that decides, a pytest runner."""
