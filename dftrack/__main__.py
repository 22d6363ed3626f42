"""`python -m dftrack` is the same as the command `dftrack`."""

from dftrack.cli import main

if __name__ == "__main__":
    main()
