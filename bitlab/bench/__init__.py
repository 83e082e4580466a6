"""Benchmarks, each beside plain torch on the same work: `packed` inference, and the `training` step."""
