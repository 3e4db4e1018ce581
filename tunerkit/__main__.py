"""`python -m tunerkit ...`, also under `accelerate launch -m tunerkit train CONFIG`."""

from tunerkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
