"""`python -m pipeline` is `pipeline`; torchrun starts it so."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
