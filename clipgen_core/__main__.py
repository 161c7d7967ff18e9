"""The command line, `clipgen` or `python -m clipgen_core`. Ctrl-C ends its imports without a traceback."""

import sys


def main() -> None:
    try:
        from clipgen_core import cli

        cli.main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
