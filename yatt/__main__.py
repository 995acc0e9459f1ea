"""`python -m yatt`: the same as the command `yatt`."""

from yatt.cli import main

if __name__ == "__main__":
    main()
