"""PEFT's module paths for tuners."""
