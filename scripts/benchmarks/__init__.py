"""What scripts/bench runs: ww beside its peers. docs/benchmarks.md says what is measured."""
