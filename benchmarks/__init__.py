"""Figures of this project on this machine: `benchmarks.demo` shows it at work, `python -m benchmarks` measures."""
