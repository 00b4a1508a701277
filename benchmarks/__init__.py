"""What adapters cost, the reference and upstream side by side: `pytest benchmarks`."""
