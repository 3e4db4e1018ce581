"""`python -m tunerkit ...`, also under `accelerate launch -m tunerkit train CONFIG`."""

import gc

from tunerkit.cli import main

# Loading the model libraries makes a million objects that stay: looking through them again and again as they come
# costs about a second. The memory of models and batches is freed by counting references, and after each phase.
gc.set_threshold(100_000, 50, 100)

if __name__ == "__main__":
    raise SystemExit(main())
