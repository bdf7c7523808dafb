"""The command line: `troupe generate`, `up`, `demo`, `doctor`, `train`."""
