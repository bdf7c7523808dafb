"""`python -m troupe` is the console script; `torchrun` starts it so."""

from troupe.main import main

if __name__ == "__main__":
    main()
