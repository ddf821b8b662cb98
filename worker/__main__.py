"""`python -m worker` is `refunds`."""

from worker.cli import main

if __name__ == "__main__":
    main()
