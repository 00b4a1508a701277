"""Fails at import, as a fork with a missing dependency does."""

raise RuntimeError("the broken implementation cannot find its library")
